//! Lines of JSON: ids and fields that are handed on, and files that are no lines.

use super::*;

/// A file of lines that ends with its folder.
struct File {
    folder: tempfile::TempDir,
}

impl File {
    fn new(bytes: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lines"), bytes).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn search(&self, more: &[&str]) -> Output {
        let flags =
            ["--prompts", &self.path("lines"), "--max-new-tokens", "2", "-w", "2", "-k", "2"];
        search(&[&flags, more].concat())
    }

    fn score(&self) -> Output {
        let (tuned, untuned, input) = (model("gpt2_tuned"), model("gpt2"), self.path("lines"));
        trimtab(&["score", "--tuned", &tuned, "--untuned", &untuned, "--input", &input])
    }
}

/// What goes on to an answer, and to a score: numbers that no float holds, and an order of their own.
const HANDED_ON: &str = concat!(
    "\"zeta\":1.0,\"reference\":[2.50, 1e400,{\"b\":-0,\"a\":\"\\u00e9\\/\"}],",
    "\"big\":340282366920938463463374607431768211457,\"alpha\":null,\"tree\":[[[[[[]]]]]]"
);

/// Goal: fields of a line that are not read go on to its answer, its error and its score: behind these' own,
/// in order, and byte for byte.
#[test]
fn other_fields_go_on_unchanged() {
    let [zeta, rest] = HANDED_ON.splitn(2, ',').collect::<Vec<_>>()[..] else { panic!() };
    let long = "word ".repeat(200);
    let file = File::new(format!(
        "{{{zeta},\"prompt\":\"The film\",\"response\":\" is\",{rest}}}\n\
         {{{zeta},\"prompt\":\"{long}\",\"response\":\" is\",{rest}}}\n\
         {{{zeta},\"prompt\":7,{rest}}}\n"
    ));
    for output in [file.search(&[]), file.score()] {
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stdout).unwrap();
        let written: Vec<&str> = text.lines().collect();
        assert_eq!(written.len(), 3);
        for line in &written {
            assert!(line.ends_with(&format!(",{HANDED_ON}}}")), "{line}");
            serde_json::from_str::<serde::de::IgnoredAny>(line).unwrap();
        }
        assert!(written[0].contains("\"gain\":") && written[1].contains("context holds 128"));
    }
    // Only an error has a number of its own.
    let file = File::new(
        "{\"prompt\":\"A\",\"response\":\"b\",\"line\":9}\n{\"line\":8,\"error\":\"no\"}\n",
    );
    let scores = lines(&String::from_utf8(file.score().stdout).unwrap());
    assert_eq!([&scores[0]["line"], &scores[1]["line"]], [9, 2]);
}

/// Goal: an id comes back as it was written, in answers, traces, errors and scores, and a run goes on with it.
#[test]
fn ids_come_back_as_they_were_written() {
    let ids = [
        "340282366920938463463374607431768211457",
        "340282366920938463463374607431768211456",
        "1.0",
        "1e3",
        "-0",
        "1e400",
        "\"\\u00e9\\/\"",
        "\"\u{e9}/\"",
    ];
    let line = |id: &&str| format!("{{\"prompt\":\"A\",\"response\":\"b\",\"id\":{id}}}\n");
    let bad = |id: &&str| format!("{{\"prompt\":7,\"id\":{id}}}\n");
    let file = File::new(ids.iter().map(line).chain(ids.iter().map(bad)).collect::<String>());
    let (out, trace) = (file.path("out"), file.path("trace"));
    let run = |more: &[&str]| file.search(&[&["--output", &out, "--trace", &trace], more].concat());
    let output = run(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(ids.iter().all(|id| said.contains(&format!("prompt {id}: "))), "{said}");
    let answers = std::fs::read_to_string(&out).unwrap();
    let steps = std::fs::read_to_string(&trace).unwrap();
    let scores = String::from_utf8(file.score().stdout).unwrap();
    for (at, id) in ids.iter().enumerate() {
        let id = format!("\"id\":{id},");
        for text in [&answers, &scores] {
            let of = |at: usize| text.lines().nth(at).unwrap();
            assert!(of(at).contains(&id), "{}", of(at));
            assert!(of(at + ids.len()).contains(&id) && of(at + ids.len()).contains("\"error\""));
        }
        let traced = steps.lines().find(|step| step.contains(&format!("\"line\":{},", at + 1)));
        assert!(traced.unwrap().starts_with(&format!("{{{id}")));
    }
    // A run goes on by the ids as they are written.
    let cut: String = answers.split_inclusive('\n').take(3).collect();
    std::fs::write(&out, cut).unwrap();
    run(&["--resume"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), answers);
    assert_eq!(std::fs::read_to_string(&trace).unwrap(), steps);
    let lines_in = std::fs::read_to_string(file.path("lines")).unwrap();
    for (from, to) in [("211457,", "211456,"), ("\"id\":1.0", "\"id\":1"), ("1e3", "1000")] {
        std::fs::write(
            file.path("lines"),
            lines_in.replace(from, to).replace("211457}", "211456}"),
        )
        .unwrap();
        assert_refused(&run(&["--resume"]), "answers another prompt");
    }
}

/// Goal: a run that was cut goes on to the same bytes with fields that are handed on, and not where these
/// are others now.
#[test]
fn a_run_goes_on_with_the_fields_it_hands_on() {
    let prompts: String = ["The film", "A", "Nothing"]
        .map(|prompt| format!("{{{HANDED_ON},\"prompt\":\"{prompt}\",\"id\":\"{prompt}\"}}\n"))
        .concat();
    let file = File::new(prompts.clone() + "{\"prompt\":7,\"last\":1.50}\n");
    let out = file.path("out");
    let run = |more: &[&str]| file.search(&[&["--output", &out], more].concat());
    assert_refused(&run(&[]), "line 4");
    let whole = std::fs::read_to_string(&out).unwrap();
    assert!(whole.trim_end().ends_with("\"last\":1.50}"), "{whole}");
    for lines_left in 0..=4 {
        let kept: String = whole.split_inclusive('\n').take(lines_left).collect();
        std::fs::write(&out, kept + &"{\"id\":"[..6 * usize::from(lines_left < 4)]).unwrap();
        assert_refused(&run(&["--resume"]), "line");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), whole, "{lines_left} lines were left");
    }
    for (from, to, name) in [
        ("\"zeta\":1.0", "\"zeta\":1", "zeta"),
        ("2.50, 1e400", "2.50,1e400", "reference"),
        ("\"alpha\":null", "\"omega\":null", "alpha"),
        ("\"alpha\":null,", "", "alpha"),
    ] {
        let changed = prompts.replace(from, to) + "{\"prompt\":7,\"last\":1.50}\n";
        std::fs::write(file.path("lines"), changed).unwrap();
        let part =
            format!("line 1: the prompt has another `{name}`; is it another prompts file's?");
        assert_refused(&run(&["--resume"]), &part);
        assert_eq!(std::fs::read_to_string(&out).unwrap(), whole);
    }
    std::fs::write(file.path("lines"), prompts + "{\"prompt\":7,\"last\":1.5}\n").unwrap();
    assert_refused(&run(&["--resume"]), "line 4: the prompt has another `last`");
}

/// Goal: what is wrong with a line is said in its place and in words that help; the other lines go on.
#[test]
fn a_bad_line_is_told_what_is_wrong() {
    let cases: &[(&[u8], &str)] = &[
        (
            b"{\"prompt\":\"a\\ud800\",\"response\":\"b\"}",
            "\\ud800 at column 13, half of a character",
        ),
        (
            b"{\"prompt\":\"a\",\"response\":\"b\",\"reference\":\"\\\\\\udc00 \"}",
            "\\udc00 at column 45",
        ),
        (b"{\"prompt\":\"a\",\"response\":\"b\",\"id\":\"\\ud83c\"}", "a lone surrogate"),
        (b"{\"prompt\":\"a\",\"response\":\"b\",\"\\ud83c\\ud83c\":1}", "\\ud83c at column 31"),
        (
            b"{\"prompt\":\"NaN\",\"response\":\"b\",\"x\":NaN}",
            "NaN at column 36, which Python's json",
        ),
        (b"{\"prompt\":\"a\\\"\",\"x\":[1,-Infinity]}", "-Infinity at column 24, which Python's"),
        (b"{\"prompt\":\"NaN\",\"response\":\"b\",\"x\":1.}", "is not JSON: invalid number"),
        (b"{\"prompt\":\"a\",\"response\":\"b\",\"x\":1,\"x\":1}", "has `x` twice"),
        (b"{\"prompt\":\"a\",\"prompt\":\"a\",\"response\":\"b\"}", "has `prompt` twice"),
        (
            b"{\"text\":\"a\",\"response\":\"b\"}",
            "`prompt` is missing; there is `text`, `response`",
        ),
        (b"{\"prompt\":\"caf\xe9\",\"response\":\"b\"}", "is not UTF-8 from column 15 on"),
        (b"{\"prompt\":\"a\0\",\"response\":\"b\"}", "has a NUL byte at column 13"),
        (b"{\"prompt\":[1],\"response\":\"b\"}", "`prompt` must be a string or a list of"),
        (b"[\"a\"]", "must be an object, not a list"),
        (b"7", "expected an object, {\"prompt\": "),
        (b"{\"prompt\":\"a\",\"response\":\"b\",\"id\":true}", "id must be a string or a number"),
    ];
    let good =
        b"{\"prompt\":\"\\ud83c\\udfac\\\\ud800\",\"response\":\"b\",\"id\":\"\\ud83c\\udfac\"}";
    let mut text = Vec::new();
    for (line, _) in cases {
        text.extend([line, &b"\n"[..], good, &b"\n"[..]].concat());
    }
    let file = File::new(text);
    for output in [file.search(&[]), file.score()] {
        assert_eq!(output.status.code(), Some(2));
        let written = lines(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(written.len(), 2 * cases.len());
        for (pair, (_, part)) in written.chunks(2).zip(cases) {
            let reason = pair[0]["error"].as_str().unwrap();
            assert!(reason.contains(part), "{part:?} is not in: {reason}");
            assert_eq!(pair[1]["id"], "🎬");
            assert!(pair[1]["gain"].is_number());
        }
    }
}

/// Goal: a file that holds no lines of JSON, or none that is what it should be, is one error that names the
/// cure, and not one for each line.
#[test]
fn a_file_of_no_prompts_is_one_error() {
    let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    };
    let prompts = "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n";
    let marked = format!("\u{feff}{prompts}");
    let many: String = (0..300).map(|i| format!("{{\"text\":\"{i}\"}}\n")).collect();
    let nothing = "line 1: `prompt` is missing; there is `text`; none of the 300 lines is a prompt";
    for (bytes, part) in [
        (utf_16(&marked, u16::to_le_bytes), "it is UTF-16; convert it with iconv -f UTF-16 -t"),
        (utf_16(&marked, u16::to_be_bytes), "it is UTF-16; convert it with iconv -f UTF-16 -t"),
        (utf_16(prompts, u16::to_le_bytes), "convert it with iconv -f UTF-16LE -t UTF-8"),
        (utf_16(prompts, u16::to_be_bytes), "convert it with iconv -f UTF-16BE -t UTF-8"),
        (
            b"[{\"prompt\":\"a\"},{\"prompt\":\"b\"}]\n".to_vec(),
            "one JSON array; make a line of each",
        ),
        (b"\xef\xbb\xbf[\n{\"prompt\":\"a\"},\n{\"prompt\":\"b\"}\n]".to_vec(), "with jq -c '.[]'"),
        (b"\n[\n{\"prompt\":\"a\",\"x\":NaN},\n{\"prompt\":\"b\"}]\n".to_vec(), "with jq -c '.[]'"),
        (
            b"{\n  \"prompt\": \"a\"\n}\n{\n  \"prompt\": \"b\"\n}\n".to_vec(),
            "them there with jq -c .",
        ),
        (many.into_bytes(), nothing),
        (b"{\"prompt\":7}\n".to_vec(), "line 1: `prompt` must be a string"),
        (b"\x1f\x8b\x08\n\x00\xff\n".to_vec(), "line 1: is not UTF-8 from column 2 on"),
    ] {
        let file = File::new(bytes);
        let output = file.search(&["--output", &file.path("out")]);
        assert_refused(&output, part);
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{part}");
        assert!(!Path::new(&file.path("out")).exists());
        let output = file.score();
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
    }
}

/// Goal: an empty file has no answers, which is no failure, and it is said.
#[test]
fn an_empty_file_is_said_to_be_empty() {
    for text in ["", "\n \r\n"] {
        let file = File::new(text);
        for output in [file.search(&[]), file.score()] {
            assert_eq!(stdout(&output), "");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("lines: there is no line in it"), "{said}");
        }
    }
}
