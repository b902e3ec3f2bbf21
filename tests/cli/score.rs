use super::*;

fn score(input: &str, more: &[&str]) -> Output {
    let (tuned, untuned) = (model("gpt2_tuned"), model("gpt2"));
    let flags = ["score", "--tuned", &tuned, "--untuned", &untuned, "--input", input];
    trimtab(&[&flags, more].concat())
}

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("pairs.jsonl");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Goal: `score` gives the reference gains, in input order, however many lines there are.
/// Tolerance as in tests/guide.rs.
#[test]
fn score_gives_the_reference_gains() {
    let text = std::fs::read_to_string(PathBuf::from(model("gains.json"))).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let cases: Vec<Value> = cases.into_iter().filter(|c| c["tuned"] == "gpt2_tuned").collect();
    // Five times, so that they fill more than one batch.
    let cases: Vec<&Value> = cases.iter().cycle().take(5 * cases.len()).collect();
    let lines_in: String = cases
        .iter()
        .map(|case| {
            let pair = serde_json::json!({"prompt": case["prompt"], "response": case["response"],
                "eos": case["eos"]});
            format!("{pair}\n")
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let scores = lines(&stdout(&score(&write(folder.path(), &lines_in), &["--bos", "never"])));
    assert_eq!(scores.len(), cases.len());
    for (score, case) in scores.iter().zip(cases) {
        assert_eq!(score["tokens"], case["tokens"]);
        let tokens = case["tokens"].as_f64().unwrap();
        for field in ["logp_tuned", "logp_untuned", "gain"] {
            let difference = score[field].as_f64().unwrap() - case[field].as_f64().unwrap();
            assert!(difference.abs() <= 0.2 * tokens, "{field}: {score} for {case}");
        }
        let fields: Vec<&str> = score.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["logp_tuned", "logp_untuned", "gain", "tokens"]);
    }
}

/// Goal: with --guide-tokens ids the response is tokenised by itself.
#[test]
fn ids_keep_the_boundary_between_prompt_and_response() {
    let folder = tempfile::tempdir().unwrap();
    let input = write(folder.path(), "{\"prompt\":\"The fil\",\"response\":\"m is\",\"eos\":true}");
    let text = lines(&stdout(&score(&input, &[]))).remove(0);
    let ids = lines(&stdout(&score(&input, &["--guide-tokens", "ids"]))).remove(0);
    assert_ne!(text["gain"], ids["gain"], "the prompt's last token merges only in text");
}

/// Goal: ids mean nothing to a pair with another vocabulary.
#[test]
fn ids_are_for_pairs_of_one_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let input = write(folder.path(), "{\"prompt\":\"The film\",\"response\":\" is\"}");
    let other = format!("{},{}", model("llama_tuned"), model("llama"));
    let flags = ["--guide", &other, "--guide-tokens"];
    let output = score(&input, &[&flags[..], &["ids"]].concat());
    assert_refused(&output, "do not have the same vocabulary");
    assert_refused(&output, "use --guide-tokens text");
    stdout(&score(&input, &[&flags[..], &["text"]].concat()));
}

/// Goal: an end that a guide has no token for is an error, in all modes, and not left out; a search that reads
/// text needs the token.
#[test]
fn an_end_without_a_token_is_an_error() {
    let endless = tempfile::tempdir().unwrap();
    copy_model("gpt2", endless.path());
    std::fs::remove_file(endless.path().join("generation_config.json")).unwrap();
    for (file, field) in [("config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")] {
        let path = endless.path().join(file);
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[field] = Value::Null;
        std::fs::write(path, config.to_string()).unwrap();
    }
    let endless = endless.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pair = "{\"prompt\":\"The film\",\"response\":\" is\",\"eos\":";
    let input = write(folder.path(), &format!("{pair}true}}\n{pair}false}}\n"));
    for mode in ["text", "ids"] {
        let flags = ["score", "--tuned", endless, "--untuned", endless, "--input", &input];
        let output = trimtab(&[&flags[..], &["--guide-tokens", mode]].concat());
        assert_eq!(output.status.code(), Some(2));
        let answers = lines(&String::from_utf8(output.stdout).unwrap());
        let reason = answers[0]["error"].as_str().unwrap();
        assert!(reason.contains("no end-of-sequence token"), "{reason}");
        assert!(answers[1]["gain"].is_number());
    }
    let guide = ["--base", &model("gpt2"), "--tuned", endless, "--untuned", endless];
    let search = ["search", "--prompt", "x", "--max-new-tokens", "3", "--guide-tokens"];
    assert_refused(&trimtab(&[&search[..], &["text"], &guide].concat()), "has no eos_token");
    stdout(&trimtab(&[&search[..], &["ids"], &guide].concat()));
}

/// Goal: a bad line is answered with its number, the others with their scores, the exit code
/// says that one failed.
#[test]
fn a_bad_line_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let good = "{\"prompt\":\"The film\",\"response\":\" is\",\"eos\":false}";
    let long = format!("{{\"prompt\":\"{}\",\"response\":\" is\"}}", "word ".repeat(300));
    let input = write(folder.path(), &format!("{good}\n{{oops\n\n{long}\n{good}\n"));
    let output = score(&input, &[]);
    assert_eq!(output.status.code(), Some(2));
    let answers = lines(&String::from_utf8(output.stdout.clone()).unwrap());
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[0], answers[3]);
    assert_eq!(answers[1]["line"], 2);
    let reason = answers[1]["error"].as_str().unwrap();
    assert!(reason.contains("line 2: is not JSON: key must be a string at column 2"), "{reason}");
    assert_eq!(answers[2]["line"], 4);
    let reason = answers[2]["error"].as_str().unwrap();
    assert!(reason.contains("context holds 128 tokens"), "{reason}");
}

/// Goal: a line's id comes back with its score, and with its error, however little of the line was right.
#[test]
fn scores_carry_the_ids_of_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let lines_in = concat!(
        "\u{feff}{\"prompt\":\"The film\",\"response\":\" is\",\"id\":\"a\"}\n",
        "{\"prompt\":\"The film\",\"response\":7,\"id\":7}\n",
        "{\"prompt\":\"The film\",\"response\":\" is\",\"id\":[]}\n",
        "\"The film\"\n",
        "[\"k\"]\n",
        "{\"prompt\":\"The film\",\"id\":8}\n",
    );
    let output = score(&write(folder.path(), lines_in), &["--bos", "never"]);
    assert_eq!(output.status.code(), Some(2));
    let answers = lines(&String::from_utf8(output.stdout).unwrap());
    let ids: Vec<Value> = answers.iter().map(|answer| answer["id"].clone()).collect();
    assert_eq!(ids, ["a".into(), Value::from(7), 3.into(), 4.into(), 5.into(), 8.into()]);
    for (answer, part) in answers[1..].iter().zip([
        "`response`: invalid type: integer `7`, expected a string",
        "id must be a string or a number",
        "expected an object, {\"prompt\": …}",
        "must be an object, not a list",
        "`response` is missing; there is `prompt`, `id`",
    ]) {
        let reason = answer["error"].as_str().unwrap();
        assert!(reason.contains(part), "{reason}");
    }
}
