use super::*;

/// Runs the program; `bench` measures the CPU, also where the other tests compute elsewhere.
fn trimtab<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
    command.args(args).env("TRIMTAB_DEVICE", "cpu").output().unwrap()
}

use std::collections::BTreeSet;

fn demo(name: &str) -> String {
    format!("{}/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A short search benchmark with the demo's models.
fn searched(more: &[&str]) -> Output {
    let (base, tuned, untuned) = (demo("base"), demo("tuned"), demo("untuned"));
    let flags = ["--base", &base, "--tuned", &tuned, "--untuned", &untuned];
    let small = ["-w", "2", "-k", "2", "-l", "4", "--max-new-tokens", "8", "--prompt-len", "20"];
    let runs = ["--repeat", "2", "--warmup", "0", "--threads", "2"];
    trimtab(&[&["bench", "search"], &flags[..], &small, &runs, more].concat())
}

fn named<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name}"))
}

/// Goal: all rows, each sane, each with a bound where one can be stated; every token is scored
/// once; the parts make up the whole.
#[test]
fn a_search_is_measured_in_parts() {
    let rows = lines(&stdout(&searched(&["--format", "json", "--concurrency", "1,2"])));
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
            assert!(number("min") >= 0.0 && number("n") >= 2.0, "{row}");
            assert!(row["unit"].is_string());
        }
        let median = |name: &str| named(&rows, name)["median"].as_f64().unwrap();
        let least = |name: &str| named(&rows, name)["min"].as_f64().unwrap();
        assert_eq!(median("scorer_work_ratio"), 1.0);
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
        assert_eq!(named(&rows, "search_s")["n"], 2);
        assert_eq!(named(&rows, "chunk_s")["n"], 4);
    }
    let machine = named(&rows, "memory_bytes_per_s");
    assert!(machine["median"].as_f64().unwrap() > 1e6);
    assert!(named(&rows, "matmul_operations_per_s")["median"].as_f64().unwrap() > 1e6);
}

/// Goal: a model alone, from a folder or made up, at each batch.
#[test]
fn models_alone_are_measured_at_each_batch() {
    let runs = ["--repeat", "1", "--warmup", "0", "--prompt-len", "6", "--format", "json"];
    let decode = ["bench", "decode", "--base", &demo("tuned"), "--batch", "1,3"];
    let rows =
        lines(&stdout(&trimtab(&[&decode[..], &["--max-new-tokens", "12"], &runs].concat())));
    let seen: BTreeSet<(String, i64)> = rows
        .iter()
        .filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["batch"].as_i64()?)))
        .collect();
    for name in ["prefill_tokens_per_s", "decode_tokens_per_s", "decode_step_s"] {
        assert!([1, 3].iter().all(|&batch| seen.contains(&(name.to_owned(), batch))), "{seen:?}");
    }
    let step = named(&rows, "decode_step_s");
    assert_eq!(step["n"], 12);
    assert!(step["p90"].as_f64().unwrap() >= step["median"].as_f64().unwrap());
    assert!(step["p99"].is_null(), "12 samples say nothing of p99");
    assert!(step["bound"].as_f64().unwrap() > 0.0);

    let score = ["bench", "score", "--shape", "gpt2", "--batch", "2"];
    let rows = lines(&stdout(&trimtab(&[&score[..], &runs].concat())));
    let row = named(&rows, "score_tokens_per_s");
    assert_eq!((&row["batch"], &row["unit"]), (&2.into(), &"tokens/s".into()));
    assert!(row["median"].as_f64().unwrap() > 0.0 && row["bound"].as_f64().unwrap() > 0.0);
}

/// Goal: what people read has the same rows.
#[test]
fn other_formats_have_the_same_rows() {
    let score = |format: &str| {
        let model = demo("tuned");
        let flags = ["bench", "score", "--base", &model, "--batch", "1", "--repeat", "1"];
        stdout(&trimtab(&[&flags[..], &["--format", format]].concat()))
    };
    let table = score("table");
    assert!(table.contains("score_tokens_per_s @ 1") && table.contains("of bound"), "{table}");
    let markdown = score("md");
    assert!(markdown.contains("| score_tokens_per_s @ 1 |"), "{markdown}");
    assert!(markdown.contains("|---|"), "{markdown}");
    let csv = score("csv");
    let columns: BTreeSet<usize> =
        csv.lines().map(|line| line.replace(", ", " ").split(',').count()).collect();
    assert_eq!(columns.len(), 1, "{csv}");
    assert!(csv.contains("score_tokens_per_s,1,"), "{csv}");
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
    assert!(text.contains("gone") && text.contains("come") && text.contains("1 of 4"), "{text}");
    let same = stdout(&trimtab(&["bench", "compare", &old, &old]));
    assert_eq!(same, "4 of 4 moved no further than their ranges\n");

    let bad = folder.path().join("bad.json");
    std::fs::write(&bad, "{\"name\": 1}\n").unwrap();
    assert_refused(&trimtab(&["bench", "compare", &old, bad.to_str().unwrap()]), "line 1");
    assert_refused(&trimtab(&["bench", "compare", &old, "/nowhere"]), "/nowhere");
    std::fs::write(&bad, "").unwrap();
    assert_refused(&trimtab(&["bench", "compare", bad.to_str().unwrap(), &old]), "holds no rows");
}

/// Goal: flags that cannot work are refused by name, with nothing on stdout.
#[test]
fn bench_flags_that_cannot_work_are_refused() {
    for (flags, part) in [
        (&["--repeat", "0"][..], "--repeat must be at least 1"),
        (&["--concurrency", "0"], "--concurrency must be at least 1"),
        (&["--concurrency", "1,x"], "--concurrency"),
        (&["--prompt-len", "0"], "--prompt-len must be at least 1"),
        (&["-w", "0"], "--beam-width must be at least 1"),
        (&["-l", "0"], "--chunk-len must be at least 1"),
        (&["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (&["--shape", "gpt2"], "--shape"),
        (&["--format", "xml"], "--format"),
        (&["--threads", "0"], "--threads must be at least 1"),
        (&["--max-new-tokens", "5000"], "context"),
        (&["--kv-memory", "1K"], "--kv-memory must be at least"),
        (&["--plot", "/nowhere/x.svg"], "/nowhere/x.svg"),
    ] {
        let (base, tuned, untuned) = (demo("base"), demo("tuned"), demo("untuned"));
        let models = ["--base", &base, "--tuned", &tuned, "--untuned", &untuned];
        let output = trimtab(&[&["bench", "search"], &models[..], flags].concat());
        assert_refused(&output, part);
        assert!(output.stdout.is_empty());
    }
    assert_refused(&trimtab(&["bench", "decode"]), "--base or --shape is needed");
    assert_refused(&trimtab(&["bench", "search", "--base", &demo("base")]), "--tuned");
    assert_refused(&trimtab(&["bench", "decode", "--shape", "gpt9"]), "--shape");
    assert_refused(&trimtab(&["bench", "decode", "--shape", "gpt2", "--batch", "0"]), "--batch");
    let long = ["bench", "score", "--shape", "gpt2", "--prompt-len", "2000"];
    assert_refused(&trimtab(&long), "--prompt-len");
    assert_refused(&trimtab(&["bench", "score", "--base", "/nowhere"]), "/nowhere");
}

/// Goal: the figure is an SVG with both curves in both panels.
#[test]
fn a_search_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cost.svg");
    let flags = ["-l", "2", "--prompt-len", "16", "--repeat", "1", "--plot"];
    let (base, tuned, untuned) = (demo("base"), demo("tuned"), demo("untuned"));
    let models = ["--base", &base, "--tuned", &tuned, "--untuned", &untuned];
    stdout(&trimtab(
        &[&["bench", "search"], &models[..], &flags, &[file.to_str().unwrap()]].concat(),
    ));
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.matches("<polyline").count() >= 4, "four curves");
    assert!(svg.contains("chunks done before") && svg.contains("candidates, W·K"));
}
