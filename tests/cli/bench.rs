//! `trimtab bench`: which rows there are, and that they are sane; no test looks at a speed.

use std::collections::BTreeSet;

use super::*;

/// `bench search` with the golden GPT-2s.
fn searched(more: &[&str]) -> Output {
    let (base, tuned) = (model("gpt2"), model("gpt2_tuned"));
    let flags = ["bench", "search", "--base", &base, "--tuned", &tuned, "--untuned", &base];
    trimtab(&[&flags[..], more].concat())
}

/// A short one.
fn shortly_searched(more: &[&str]) -> Output {
    let small = ["-w", "2", "-k", "2", "-l", "4", "--max-new-tokens", "8", "--prompt-len", "20"];
    let runs = ["--repeat", "2", "--warmup", "0", "--threads", "2"];
    searched(&[&small[..], &runs, more].concat())
}

fn named<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name}"))
}

/// Goal: all rows, each sane, each with a bound where one can be stated; a token is scored
/// once at most; the parts make up the whole.
#[test]
fn a_search_is_measured_in_parts() {
    let rows = lines(&stdout(&shortly_searched(&["--format", "json", "--concurrency", "1,2"])));
    for concurrency in [1, 2] {
        let rows: Vec<Value> =
            rows.iter().filter(|row| row["concurrency"] == concurrency).cloned().collect();
        for name in [
            "search_s",
            "first_chunk_s",
            "chunk_s",
            "prefill_s",
            "expand_s",
            "score_s",
            "sampled_tokens_per_s",
            "committed_tokens_per_s",
            "scorer_work_ratio",
        ] {
            assert!(named(&rows, name)["bound"].as_f64().unwrap() > 0.0, "{name}");
        }
        for row in &rows {
            let number = |field: &str| row[field].as_f64().unwrap();
            assert!(number("min") <= number("median") && number("median") <= number("max"));
            let samples = if row["name"] == "peak_memory" { 1.0 } else { 2.0 };
            assert!(number("min") >= 0.0 && number("n") >= samples, "{row}");
            assert!(row["unit"].is_string());
            assert!(!row["device"].as_str().unwrap().is_empty(), "{row}");
            assert!(row["date"].as_str().unwrap().ends_with("GMT"), "{row}");
        }
        let median = |name: &str| named(&rows, name)["median"].as_f64().unwrap();
        let least = |name: &str| named(&rows, name)["min"].as_f64().unwrap();
        // 51 tokens; candidates share their first ones.
        let ratio = named(&rows, "scorer_work_ratio");
        let bound = ratio["bound"].as_f64().unwrap();
        assert!((bound - 46.0 / 51.0).abs() < 1e-9, "{bound}");
        assert!(median("scorer_work_ratio") <= bound, "{ratio}");
        let parts = ["prefill_s", "expand_s", "score_s", "select_s", "fork_s"];
        assert!(
            parts.map(least).iter().sum::<f64>()
                <= named(&rows, "search_s")["max"].as_f64().unwrap()
        );
        assert!(median("fork_s") > 0.0 && median("select_s") > 0.0);
        // No response ends before its limit: 8 of 4 x 8 tokens are the answer's.
        let share = median("sampled_tokens_per_s") / median("committed_tokens_per_s");
        assert!((share - 4.0).abs() < 1e-9, "{share}");
        // 27 positions, of which 16 lie on a page that all share.
        assert!(median("pages_used") > 0.0 && median("pages_shared") > 0.0);
        assert_eq!(named(&rows, "pages_used")["unit"], "pages");
        if cfg!(target_os = "linux") {
            assert!(median("peak_memory") > 0.0);
        }
        assert_eq!(named(&rows, "search_s")["n"], 2);
        assert_eq!(named(&rows, "chunk_s")["n"], 4);
    }
    for rate in ["memory_bytes_per_s", "matmul_operations_per_s"] {
        assert!(named(&rows, rate)["median"].as_f64().unwrap() > 1e5, "{rate}");
    }
}

/// Goal: a model alone, from a folder or made up, at each batch; percentiles only where there are
/// samples for them.
#[test]
fn models_alone_are_measured_at_each_batch() {
    let runs = ["--repeat", "1", "--warmup", "0", "--prompt-len", "6", "--format", "json"];
    let decode = ["bench", "decode", "--base", &model("gpt2_tuned"), "--batch", "1,3"];
    let new = many_or_few(12, 3);
    let count = new.to_string();
    let flags = [&decode[..], &["--max-new-tokens", &count], &runs].concat();
    let rows = lines(&stdout(&trimtab(&flags)));
    let seen: BTreeSet<(String, i64)> = rows
        .iter()
        .filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["batch"].as_i64()?)))
        .collect();
    for name in ["prefill_tokens_per_s", "decode_tokens_per_s", "decode_step_s"] {
        assert!([1, 3].iter().all(|&batch| seen.contains(&(name.to_owned(), batch))), "{seen:?}");
    }
    let step = named(&rows, "decode_step_s");
    assert!(step["bound"].as_f64().unwrap() > 0.0);
    assert!(step["p99"].is_null(), "12 samples say nothing of p99");
    if device() == "cpu" {
        assert_eq!(step["n"], new, "a sample for each time that the host looks");
        assert!(step["p90"].as_f64().unwrap() >= step["median"].as_f64().unwrap());
    } else {
        assert_eq!((&step["n"], step["p90"].is_null()), (&1.into(), true));
    }

    let made_up = ["bench", "score", "--shape", "gpt2", "--batch", "2"];
    let given = ["bench", "score", "--base", &model("gpt2"), "--batch", "2"];
    // Made up are only shapes of published models, which are too large for the emulator.
    let score = if device() == "emulator" { given } else { made_up };
    let rows = lines(&stdout(&trimtab(&[&score[..], &runs].concat())));
    let row = named(&rows, "score_tokens_per_s");
    assert_eq!((&row["batch"], &row["unit"]), (&2.into(), &"tokens/s".into()));
    assert!(row["median"].as_f64().unwrap() > 0.0 && row["bound"].as_f64().unwrap() > 0.0);
}

/// Goal: what people read has the same rows, and can be had together with JSON.
#[test]
fn other_formats_have_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.json");
    let score = |format: &str| {
        let model = model("gpt2");
        let flags = ["bench", "score", "--base", &model, "--batch", "1", "--repeat", "1"];
        let more = ["--prompt-len", "8", "--format", format, "--json", file.to_str().unwrap()];
        stdout(&trimtab(&[&flags[..], &more].concat()))
    };
    let table = score("table");
    assert!(table.contains("score_tokens_per_s @ 1") && table.contains("of bound"), "{table}");
    assert!(!table.contains("per chunk"), "an empty column: {table}");
    let markdown = score("md");
    assert!(markdown.contains("| score_tokens_per_s @ 1 |"), "{markdown}");
    assert!(markdown.contains("|---|"), "{markdown}");
    let csv = score("csv");
    let columns: BTreeSet<usize> =
        csv.lines().map(|line| line.replace(", ", " ").split(',').count()).collect();
    assert_eq!(columns.len(), 1, "{csv}");
    assert!(csv.contains("score_tokens_per_s,1,"), "{csv}");
    let saved = lines(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(saved.len() + 1, csv.lines().count());
    assert_eq!(named(&saved, "score_tokens_per_s")["batch"], 1);
}

/// Goal: only what moved beyond the ranges is named, with its direction.
#[test]
fn compare_prints_what_moved() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, rows: &[(&str, &str, [f64; 3])]| {
        let lines: String = rows
            .iter()
            .map(|(name, unit, [min, median, max])| {
                format!(
                    "{{\"bench\":\"search\",\"name\":\"{name}\",\"unit\":\"{unit}\",\"n\":3,\
                     \"min\":{min},\"median\":{median},\"max\":{max}}}\n"
                )
            })
            .collect();
        let path = folder.path().join(name);
        std::fs::write(&path, lines).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let old = file(
        "old.json",
        &[
            ("search_s", "s", [1.0, 1.1, 1.2]),
            ("score_s", "s", [0.5, 0.6, 0.7]),
            ("rate", "tokens/s", [10.0, 11.0, 12.0]),
            ("gone", "s", [1.0, 1.0, 1.0]),
        ],
    );
    let new = file(
        "new.json",
        &[
            ("search_s", "s", [2.0, 2.2, 2.4]),
            ("score_s", "s", [0.6, 0.65, 0.9]),
            ("rate", "tokens/s", [20.0, 22.0, 24.0]),
            ("come", "s", [1.0, 1.0, 1.0]),
        ],
    );
    let text = stdout(&trimtab(&["bench", "compare", &old, &new]));
    assert!(text.contains("search_s: 1.100 s → 2.200 s (+100.0 %, worse)"), "{text}");
    assert!(text.contains("(+100.0 %, better)"), "{text}");
    assert!(!text.contains("score_s"), "{text}");
    assert!(text.contains("gone") && text.contains("come") && text.contains("1 of 3"), "{text}");
    // What was measured on another machine is said to be.
    let elsewhere = folder.path().join("elsewhere.json");
    let text = std::fs::read_to_string(&old).unwrap();
    let text = text.replace("\"n\":3", "\"n\":3,\"device\":\"another\",\"driver\":\"1.2\"");
    std::fs::write(&elsewhere, text).unwrap();
    let text = stdout(&trimtab(&["bench", "compare", &old, elsewhere.to_str().unwrap()]));
    assert!(text.contains("elsewhere.json is of another, driver 1.2"), "{text}");

    let same = stdout(&trimtab(&["bench", "compare", &old, &old]));
    assert_eq!(same, "4 of 4 moved no further than their ranges\n");

    let apart = file("apart.json", &[("come", "s", [1.0, 1.0, 1.0])]);
    let output = trimtab(&["bench", "compare", &old, &apart]);
    assert_refused(&output, "no row in common");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("come") && text.contains("gone"), "{text}");
    assert!(!text.contains("moved no further"), "{text}");

    let bad = folder.path().join("bad.json");
    std::fs::write(&bad, "{\"name\": 1}\n").unwrap();
    assert_refused(&trimtab(&["bench", "compare", &old, bad.to_str().unwrap()]), "line 1");
    assert_refused(&trimtab(&["bench", "compare", &old, "/nowhere"]), "/nowhere");
    std::fs::write(&bad, "").unwrap();
    assert_refused(&trimtab(&["bench", "compare", bad.to_str().unwrap(), &old]), "holds no rows");
}

/// Refused, and before the machine was measured.
fn assert_unmeasured(output: &Output, part: &str) {
    assert_refused(output, part);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("bench machine"), "{errors}");
}

/// Goal: flags that cannot work are refused by name, before anything is measured, with nothing on stdout.
#[test]
fn bench_flags_that_cannot_work_are_refused() {
    for (flags, part) in [
        (&["--repeat", "0"][..], "--repeat must be at least 1"),
        (&["--concurrency", "0"], "--concurrency must be at least 1"),
        (&["--concurrency", "1,x"], "must be whole numbers, such as 1,4,16"),
        (&["--concurrency", "1,5000"], "--concurrency must be at most 4096"),
        (&["--prompt-len", "0"], "--prompt-len must be at least 1"),
        (&["-w", "0"], "--beam-width must be at least 1"),
        (&["-l", "0"], "--chunk-len must be at least 1"),
        (&["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (&["--shape", "gpt2"], "--shape"),
        (&["--prompt-len", "70"], "context holds 128 tokens, but 70 prompt tokens and up to 60"),
        (&["--format", "xml"], "--format"),
        (&["--threads", "0"], "--threads must be at least 1"),
        (&["--max-new-tokens", "5000"], "context"),
        (&["--kv-memory", "1K"], "--kv-memory must be at least"),
        (&["--plot", "/nowhere/x.svg"], "/nowhere/x.svg"),
        (&["--json", "/nowhere/x.json"], "/nowhere/x.json"),
    ] {
        let output = searched(flags);
        assert_unmeasured(&output, part);
        assert!(output.stdout.is_empty());
    }
    assert_refused(&trimtab(&["bench", "decode"]), "--base or --shape is needed");
    let base = model("gpt2");
    assert_unmeasured(
        &trimtab(&["bench", "search", "--base", &base]),
        "with --tuned and --untuned",
    );
    let plotted = ["bench", "search", "--base", &base, "--plot", "/nowhere/x.svg"];
    assert_unmeasured(&trimtab(&plotted), "with --tuned and --untuned");
    for (bench, flags, part) in [
        ("decode", &["--base", &base, "--prompt-len", "200"][..], "the context of 128"),
        ("decode", &["--base", &base, "--prompt-len", "100"], "(with what follows: 132)"),
        ("decode", &["--base", &base, "--kv-memory", "1K"], "--kv-memory must be at least"),
        ("decode", &["--base", &base, "--batch", "1,x"], "must be whole numbers, such as 1,4,16"),
        ("score", &["--base", &base, "--prompt-len", "129"], "the context of 128"),
        ("search", &["--shape", "gpt2", "--prompt-len", "1000"], "the base model's context"),
        ("search", &["--shape", "gpt2", "--kv-memory", "1M"], "--kv-memory must be at least"),
    ] {
        assert_unmeasured(&trimtab(&[&["bench", bench], flags].concat()), part);
    }
    assert_refused(&trimtab(&["bench", "decode", "--shape", "gpt9"]), "--shape");
    assert_refused(&trimtab(&["bench", "decode", "--shape", "gpt2", "--batch", "0"]), "--batch");
    let mixed = ["bench", "search", "--shape", "llama-8b", "--guide-shape", "gpt2"];
    assert_refused(&trimtab(&mixed), "--guide-shape must have the base model's vocabulary");
    let large = ["bench", "decode", "--shape", "llama-8b", "--device-memory", "1G"];
    assert_refused(
        &trimtab(&large),
        "bytes for weights, scratch memory, keys and values do not fit: ",
    );
    let long = ["bench", "score", "--shape", "gpt2", "--prompt-len", "2000"];
    assert_refused(&trimtab(&long), "--prompt-len");
    assert_refused(&trimtab(&["bench", "score", "--base", "/nowhere"]), "/nowhere");
}

/// Goal: the figure is an SVG with all curves in both panels, and says what they are.
#[test]
fn a_search_is_drawn() {
    if device() == "emulator" {
        // Up to 64 candidates would take minutes there.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cost.svg");
    let flags = ["-w", "2", "-k", "2", "-l", "4", "--max-new-tokens", "4", "--warmup", "0"];
    let more = ["--prompt-len", "40", "--repeat", "1", "--plot", file.to_str().unwrap()];
    stdout(&searched(&[&flags[..], &more].concat()));
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    let lines = svg.split("<polyline").skip(1).filter_map(|rest| rest.split('>').next());
    let thick = lines.filter(|line| line.contains("stroke-width=\"2\"")).count();
    assert_eq!(thick, 2 * 5, "five curves, each with its line in a legend");
    for text in [
        "chunks done before",
        "candidates, W·K",
        "time per chunk, ms",
        "run again (measured)",
        "bound",
    ] {
        assert!(svg.contains(text), "{text} is not in the figure");
    }
}
