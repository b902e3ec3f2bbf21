//! Whatever lies in files and flags, the program answers or says what is wrong: it never panics,
//! hangs, or asks for absurd amounts of memory.
#![allow(clippy::unwrap_used)]

mod child;
mod damage;
mod templates;
mod tokenizers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use damage::{Damage, cases, damages};
use proptest::prelude::*;
use trimtab::engine::Config;
use trimtab::text::{Bos, ChatTemplate, Message, Template, Tokenizer};
use trimtab::weights::Checkpoint;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Runs the program with 2 GiB of addresses; it must end by itself within 20 seconds, well or with
/// exit code 2 and a message.
fn run(args: &[String]) -> Output {
    let limited = "ulimit -v 2097152; exec \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", limited, "sh", env!("CARGO_BIN_EXE_trimtab")])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("hangs: {args:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 2)), "{:?} for {args:?}: {errors}", output.status);
    assert!(!errors.contains("panicked"), "{args:?}: {errors}");
    assert!(code == Some(0) || !errors.trim().is_empty(), "no word about {args:?}");
    output
}

fn strings<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_owned).to_vec()
}

/// A golden model whose files may be damaged.
pub struct Folder(tempfile::TempDir);

impl Folder {
    fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(golden(name)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `with` while a file is damaged.
    fn damaged(&self, file: &str, damages: &[Damage], with: impl FnOnce(&Path)) {
        let path = self.path().join(file);
        let whole = fs::read(&path).unwrap();
        // Of weights only the header: other numbers are numbers too.
        let header = if file.ends_with(".safetensors") {
            8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize
        } else {
            whole.len()
        };
        let damaged = damages.iter().fold(whole[..header].to_vec(), |b, damage| damage.apply(b));
        fs::write(&path, [&damaged[..], &whole[header..]].concat()).unwrap();
        with(self.path());
        fs::write(&path, whole).unwrap();
    }
}

const FILES: [(&str, &str); 11] = [
    ("gpt2", "config.json"),
    ("llama3", "config.json"),
    ("mistral", "config.json"),
    ("gpt2", "generation_config.json"),
    ("gpt2", "tokenizer.json"),
    ("llama3", "tokenizer.json"),
    ("mistral", "tokenizer.json"),
    ("llama3", "tokenizer_config.json"),
    ("mistral", "chat_template.jinja"),
    ("gpt2", "model.safetensors"),
    ("llama3", "model.safetensors.index.json"),
];

/// Goal: a damaged file of a model is read or refused, by the library: many damages, quickly.
#[test]
fn damaged_models_are_read_or_refused() {
    let (mut fine, mut refused) = (0, 0);
    for (name, file) in FILES {
        let folder = Folder::of(name);
        for damages in cases(60, damages()) {
            folder.damaged(file, &damages, |path| {
                let config = Config::open(path).map(|_| ());
                let checkpoint = Checkpoint::open(path).map(|_| ());
                let tokenizer = Tokenizer::open(path).and_then(|tokenizer| {
                    let ids = tokenizer.encode("The film, 你好 <s>\n", Bos::Auto)?;
                    ids.iter().for_each(|&id| assert!(tokenizer.bytes(id).len() < 1000));
                    let turn = Message { role: "user".into(), content: "Hello".into() };
                    tokenizer
                        .chat_template()
                        .map_or(Ok(String::new()), |chat| chat.render(&[turn], None))
                });
                for result in [config, checkpoint, tokenizer.map(|_| ())] {
                    match result {
                        Ok(()) => fine += 1,
                        Err(error) => {
                            assert!(!error.to_string().is_empty());
                            refused += 1;
                        }
                    }
                }
            });
        }
    }
    assert!(fine > 100 && refused > 100, "{fine} were fine, {refused} were refused");
}

/// Goal: the same for the whole program, from the file to an answer.
#[test]
fn the_program_survives_damaged_models() {
    for (name, file) in FILES {
        let folder = Folder::of(name);
        for damages in cases(6, damages()) {
            folder.damaged(file, &damages, |path| {
                let path = path.to_str().unwrap();
                let mut args = strings([
                    "search",
                    "--base",
                    path,
                    "--prompt",
                    "The film",
                    "--method",
                    "sample",
                    "--max-new-tokens",
                    "3",
                    "--kv-memory",
                    "4M",
                    "--threads",
                    "1",
                ]);
                if name != "gpt2" {
                    args.push("--chat".into());
                }
                run(&args);
                run(&strings(["inspect", path]));
            });
        }
    }
}

/// Goal: every line of a file is answered, with a result or with an error, whatever is in it; a file in
/// which nothing could be is one error.
#[test]
fn every_line_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    let lines = |text: &[u8]| {
        text.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty()).count()
    };
    let answered = |output: &Output, text: &[u8]| {
        let said = String::from_utf8_lossy(&output.stderr);
        let (written, shown) = (lines(&output.stdout), String::from_utf8_lossy(text));
        match written {
            0 if lines(text) > 0 => assert_eq!(said.lines().count(), 1, "{shown}: {said}"),
            _ => assert_eq!(written, lines(text), "{shown}"),
        }
    };
    let (base, tuned) = (golden("gpt2"), golden("gpt2_tuned"));
    let (base, tuned) = (base.to_str().unwrap(), tuned.to_str().unwrap());
    let prompts = "{\"prompt\": \"The film\", \"id\": \"a\"}\n{\"prompt\": [{\"role\": \"user\", \
                   \"content\": \"x\"}]}\n{\"prompt\": \"é 你好\"}\n";
    let pairs = "{\"prompt\": \"The film\", \"response\": \" is\", \"eos\": true}\n\
                 {\"prompt\": \"\", \"response\": \"\"}\n";
    for damages in cases(25, damages()) {
        let text = damages.iter().fold(prompts.as_bytes().to_vec(), |b, damage| damage.apply(b));
        fs::write(&path, &text).unwrap();
        let file = path.to_str().unwrap();
        let output = run(&strings([
            "search",
            "--base",
            base,
            "--prompts",
            file,
            "--method",
            "sample",
            "--threads",
            "1",
            "--max-new-tokens",
            "2",
            "--kv-memory",
            "4M",
        ]));
        answered(&output, &text);
        let text = damages.iter().fold(pairs.as_bytes().to_vec(), |b, damage| damage.apply(b));
        fs::write(&path, &text).unwrap();
        let output = run(&strings([
            "score",
            "--tuned",
            tuned,
            "--untuned",
            base,
            "--input",
            file,
            "--threads",
            "1",
            "--kv-memory",
            "4M",
        ]));
        answered(&output, &text);
    }
}

/// Goal: --resume goes on or refuses, whatever happened to the files of the first run, and what
/// it goes on with is what the first run wrote.
#[test]
fn a_damaged_output_is_resumed_or_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let prompts = "{\"prompt\": \"The film\"}\n{\"prompt\": \"A\"}\n{\"prompt\": \"B\"}\n";
    fs::write(path("prompts"), prompts).unwrap();
    let base = golden("gpt2");
    let mut args = strings([
        "search",
        "--base",
        base.to_str().unwrap(),
        "--prompts",
        &path("prompts"),
        "--output",
        &path("out"),
        "--trace",
        &path("trace"),
        "--method",
        "sample",
        "--max-new-tokens",
        "2",
        "--threads",
        "1",
        "--kv-memory",
        "4M",
    ]);
    assert_eq!(run(&args).status.code(), Some(0));
    args.push("--resume".into());
    let files = ["out", "out.settings.json", "trace"];
    let whole = files.map(|name| fs::read(path(name)).unwrap());
    for damages in cases(15, damages()) {
        for damaged in 0..files.len() {
            for (name, bytes) in files.iter().zip(&whole) {
                fs::write(path(name), bytes).unwrap();
            }
            let bytes = damages.iter().fold(whole[damaged].clone(), |b, damage| damage.apply(b));
            fs::write(path(files[damaged]), bytes).unwrap();
            let went_on = run(&args).status.success();
            let out = fs::read(path("out")).unwrap();
            // A damage inside an answer's text cannot be known; all lines are there and whole.
            assert!(!went_on || out.iter().filter(|&&b| b == b'\n').count() == 3);
        }
    }
}

/// Goal: flags may have any value.
#[test]
fn flags_may_have_any_value() {
    let base = golden("gpt2");
    let tuned = golden("gpt2_tuned");
    let flags = [
        "-w",
        "-k",
        "-l",
        "--max-new-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
        "--beta",
        "--stop",
        "--base-template",
        "--guide-template",
        "--guide-tokens",
        "--bos",
        "--compat",
        "--concurrency",
        "--threads",
        "--kv-memory",
        "--method",
        "--shard",
        "--guide",
        "--device",
    ];
    let values = [
        "0",
        "1",
        "2",
        "3",
        "-1",
        "inf",
        "nan",
        "1e-45",
        "1e38",
        "18446744073709551615",
        "65536",
        "4294967295",
        "999999",
        "",
        " ",
        "é",
        "{prompt}",
        "{prompt}{prompt}",
        "{",
        "text",
        "ids",
        "auto",
        "always",
        "never",
        "reference",
        "cpu",
        "bon",
        "eft",
        "sample",
        "cbs",
        "1M",
        "100K",
        "1e30T",
        "0K",
        "1/2",
        "2/1",
        "a,b",
        "a,b,c",
        ",",
        "\u{fffd}",
        "{% for %}",
    ];
    let strategy = prop::collection::vec(
        (prop::sample::select(flags.to_vec()), prop::sample::select(values.to_vec())),
        1..4,
    );
    for flags in cases(120, strategy) {
        let mut args = strings([
            "search",
            "--base",
            base.to_str().unwrap(),
            "--tuned",
            tuned.to_str().unwrap(),
            "--untuned",
            base.to_str().unwrap(),
            "--prompt",
            "The film",
        ]);
        // A tame setting of what makes a search long, unless the case is about it.
        for (flag, value) in [("--max-new-tokens", "4"), ("--threads", "1"), ("--kv-memory", "8M")]
        {
            if flags.iter().all(|(given, _)| *given != flag) {
                args.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        // With an equals sign, so that a value may begin with a dash.
        args.extend(flags.iter().map(|(flag, value)| match flag.strip_prefix("--") {
            Some(_) => format!("{flag}={value}"),
            None => format!("{flag}{value}"),
        }));
        run(&args);
    }
}

/// Goal: no file of a model moves the cursor, recolours the screen or renames the window.
#[test]
fn control_characters_of_files_do_not_reach_the_terminal() {
    let folder = Folder::of("mistral");
    let path = folder.path().to_str().unwrap();
    let is_shown = |output: &Output| {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("\\u{1b}]0;x\\u{7}\\u{9b}2J"), "{said}");
        assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
    };
    let harm = "\u{1b}]0;x\u{7}\u{9b}2J";
    let refuses = format!("{{{{ raise_exception('{harm}') }}}}");
    fs::write(folder.path().join("chat_template.jinja"), refuses).unwrap();
    let args = ["search", "--base", path, "--prompt", "The film", "--method", "sample", "--chat"];
    is_shown(&run(&strings(args)));
    let config = folder.path().join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json[harm] = true.into();
    fs::write(&config, json.to_string()).unwrap();
    is_shown(&run(&strings(["inspect", path])));
}

/// Goal: templates that run forever, or write without end, are stopped.
#[test]
fn endless_templates_are_stopped() {
    let turn = [Message { role: "user".into(), content: "Hello".into() }];
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'abcdefgh' * 100000 }}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a' * 1000000000000 }}",
        "{{ [0] * 1000000000000 }}",
        "{{ messages[0].content.rjust(100000000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ strftime_now('%') }}",
        "{% if",
    ] {
        let started = Instant::now();
        let rendered = ChatTemplate::new(source, Path::new("x"), Vec::new()).render(&turn, None);
        assert!(rendered.is_err(), "{source} gives {} bytes", rendered.unwrap().len());
        assert!(started.elapsed() < Duration::from_secs(5), "{source} takes too long");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Goal: any text is a template, or is refused for want of a place for the prompt.
    #[test]
    fn any_text_may_be_a_template(text in "\\PC{0,30}", prompt in "\\PC{0,10}") {
        let whole = format!("{text}{{prompt}}{text}");
        let rendered = Template::parse("--base-template", &whole).unwrap().render(&prompt);
        prop_assert!(rendered.contains(&prompt));
        prop_assert_eq!(Template::parse("x", &text).is_ok(), text.contains("{prompt}"));
    }

    /// Goal: any text is a chat template, which renders or is refused.
    #[test]
    fn any_text_may_be_a_chat_template(
        parts in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", " for m in messages ", " endfor ", " if ", " else ", " endif ",
            "m.content", "m['role']", " | trim", " | tojson", "'x'", "+", "-1", "messages[0]",
            " set x = ", "namespace()", "raise_exception('no')", "~", "(", ")", "loop.index",
            ".split('a')", "{#", "#}", "bos_token", " is defined", "[::-1]", "99999999999",
            "%", "'%s'", "'", "\"", "\\", "'\\x4'", "é", "[", "]", "{", "}", ",", "=", " is not ",
            "{% generation %}", "{% endgeneration %}", "{% raw %}", "{%- endraw", " break ", "\r\n",
            " with ", " endwith ", " macro f(a, b=a) ", " endmacro ", "f(1)", "**", "//", ".",
        ]), 0..25),
    ) {
        let turn = [Message { role: "user".into(), content: "Hello".into() }];
        let _ = ChatTemplate::new(&parts.concat(), Path::new("x"), Vec::new()).render(&turn, None);
    }
}
