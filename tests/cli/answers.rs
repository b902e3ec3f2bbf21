//! What `search` writes, `score` reads: the same gains, by token ids and by text.

use super::*;

/// One of the demo's models.
fn demo(name: &str) -> String {
    format!("{}/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A guide: its tuned and its untuned model.
type Guide = [String; 2];

fn demo_guide() -> Guide {
    [demo("tuned"), demo("untuned")]
}

fn golden_guide() -> Guide {
    [model("gpt2_tuned"), model("gpt2")]
}

fn answers(base: &str, [tuned, untuned]: &Guide, prompts: &str, more: &[&str]) -> String {
    let models = ["search", "--base", base, "--tuned", tuned, "--untuned", untuned];
    let flags = ["--prompts", prompts, "-w", "2", "-k", "2", "-l", "4"];
    stdout(&trimtab(&[&models[..], &flags, more].concat()))
}

/// Scores lines as they are.
fn scored([tuned, untuned]: &Guide, lines_in: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    std::fs::write(&path, lines_in).unwrap();
    let input = path.to_str().unwrap();
    trimtab(&[&["score", "--tuned", tuned, "--untuned", untuned, "--input", input], more].concat())
}

/// The gains that `score` finds are those that the answers carry.
fn assert_same_gains(guide: &Guide, answers: &str, more: &[&str]) {
    let scores = lines(&stdout(&scored(guide, answers, more)));
    let answers = lines(answers);
    assert_eq!(scores.len(), answers.len());
    for (score, answer) in scores.iter().zip(&answers) {
        assert_eq!(score["id"], answer["id"]);
        for field in ["gain", "logp_tuned", "logp_untuned"] {
            let difference = score[field].as_f64().unwrap() - answer[field].as_f64().unwrap();
            assert!(difference.abs() <= 1e-3, "{field} of {answer}: {score}");
        }
    }
}

/// Answers as they were before an edit of each line.
fn edited(answers: &str, edit: impl Fn(&mut Value)) -> String {
    let mut answers = lines(answers);
    answers.iter_mut().for_each(edit);
    answers.iter().map(|answer| format!("{answer}\n")).collect()
}

fn drop_field(name: &'static str) -> impl Fn(&mut Value) {
    move |answer| drop(answer.as_object_mut().unwrap().shift_remove(name))
}

/// Goal: `score` finds the gain of every answer of the demo's prompts: from the tokens that were drawn, and
/// from the text where the guide read that; also of answers that were cut or ended by a stop string.
#[test]
fn score_finds_the_gains_of_the_demos_answers() {
    let folder = tempfile::tempdir().unwrap();
    let openings = std::fs::read_to_string(demo("openings.jsonl")).unwrap();
    let few: String = openings.split_inclusive('\n').take(many_or_few(12, 1)).collect();
    let prompts = folder.path().join("openings.jsonl");
    std::fs::write(&prompts, few).unwrap();
    let prompts = prompts.to_str().unwrap();
    let (base, guide) = (demo("base"), demo_guide());
    let run = |more: &[&str]| answers(&base, &guide, prompts, more);
    let all = [&[][..], &["--max-new-tokens", "6"], &["--stop", " the", "--stop", "."]];
    for &more in &all[many_or_few(0, 1)..many_or_few(3, 2)] {
        let answers = run(&[more, &["--token-ids"]].concat());
        for answer in lines(&answers) {
            assert_eq!(answer["guide_tokens"], "ids");
            assert_eq!(answer["token_ids"].as_array().unwrap().len(), answer["tokens"]);
        }
        assert_same_gains(&guide, &answers, &[]);
        assert_same_gains(&guide, &answers, &["--guide-tokens", "ids"]);
        let text = run(&[more, &["--guide-tokens", "text"]].concat());
        assert_same_gains(&guide, &text, &[]);
        let both = run(&[more, &["--guide-tokens", "text", "--token-ids"]].concat());
        assert_same_gains(&guide, &both, &[]);
        assert_eq!(
            edited(&edited(&both, drop_field("token_ids")), drop_field("guide_tokens")),
            edited(&text, |_| ())
        );
    }
}

/// Goal: the paper's code scores an end behind a response that was cut; the answer says so, and `score`
/// does so.
#[test]
fn an_end_that_compat_adds_is_scored_too() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 2);
    let flags = ["--compat", "reference", "--max-new-tokens", "6"];
    let (base, guide) = (model("gpt2"), golden_guide());
    let answers = answers(&base, &guide, &prompts, &flags);
    assert!(lines(&answers).iter().all(|answer| answer["eos"] == true));
    assert!(lines(&answers).iter().any(|answer| answer["finish_reason"] == "length"));
    assert_same_gains(&guide, &answers, &["--bos", "never"]);
}

/// Goal: ids are scored as they were drawn, where the text would be tokenised otherwise.
#[test]
fn ids_are_scored_as_they_were_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 2);
    let (base, guide) = (model("gpt2"), golden_guide());
    let run = |more: &[&str]| {
        answers(&base, &guide, &prompts, &[&["--max-new-tokens", "16"], more].concat())
    };
    let with_ids = run(&["--token-ids"]);
    assert_same_gains(&guide, &with_ids, &[]);
    let gains = |lines_in: &str, more: &[&str]| -> Vec<Value> {
        lines(&stdout(&scored(&guide, lines_in, more)))
            .iter()
            .map(|score| score["gain"].clone())
            .collect()
    };
    let text = gains(&with_ids, &["--guide-tokens", "text"]);
    assert_ne!(gains(&with_ids, &[]), text);
    assert_eq!(gains(&run(&[]), &[]), text, "without ids there is only the text");
    // Ids that say nothing of the search they are from are scored if they write the response.
    assert_eq!(gains(&edited(&with_ids, drop_field("guide_tokens")), &[]), gains(&with_ids, &[]));
    // 399 is the end.
    let ended = edited(&with_ids, |answer| answer["eos"] = true.into());
    let appended = edited(&with_ids, |answer| {
        answer["token_ids"].as_array_mut().unwrap().push(399.into());
        answer["eos"] = true.into();
    });
    assert_ne!(
        gains(&ended, &[]),
        gains(&with_ids, &[]),
        "the end is scored where the ids lack it"
    );
    assert_eq!(gains(&ended, &[]), gains(&appended, &[]));
}

/// Goal: ids that are not of the guide's vocabulary are never read as its own: where the search scored text,
/// where they do not write the response there, and with --guide-tokens ids that is an error.
#[test]
fn ids_of_another_vocabulary_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 2);
    let guide = [model("llama_tuned"), model("llama")];
    let flags = ["--token-ids", "--max-new-tokens", "10"];
    let answers = answers(&model("mistral"), &guide, &prompts, &flags);
    assert!(lines(&answers).iter().all(|answer| answer["guide_tokens"] == "text"));
    assert_same_gains(&guide, &answers, &[]);
    let note = "the token_ids of 2 lines are not of this guide's vocabulary: the text was scored";
    let unsaid = edited(&answers, drop_field("guide_tokens"));
    for (lines_in, noted) in [(&answers, false), (&unsaid, true)] {
        let output = scored(&guide, lines_in, &[]);
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains(note), noted);
    }
    assert_same_gains(&guide, &unsaid, &[]);
    let output = scored(&guide, &answers, &["--guide-tokens", "ids"]);
    assert_refused(&output, "these ids do not write the response; use --guide-tokens text");
    assert_eq!(lines(&String::from_utf8(output.stdout).unwrap()).len(), 2);
}

/// Goal: a further pair with another vocabulary reads the text beside ids, as in the search.
#[test]
fn each_pair_reads_what_it_read_in_the_search() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 2);
    let other = format!("{},{},0.5", model("llama_tuned"), model("llama"));
    let (base, guide) = (model("gpt2"), golden_guide());
    let flags = ["--guide", &other, "--token-ids", "--max-new-tokens", "10"];
    let answers = answers(&base, &guide, &prompts, &flags);
    assert_same_gains(&guide, &answers, &["--guide", &other]);
}

/// Goal: an end is scored where `eos` says so, or else where a `finish_reason` is `stop` without a stop
/// string, which is scored behind the response.
#[test]
fn the_end_of_an_answer_is_read_from_its_fields() {
    let line = |more: &str| format!("{{\"prompt\":\"The film\",\"response\":\" is\"{more}}}\n");
    let ended = line(",\"eos\":true");
    let open = line("");
    let longer = "{\"prompt\":\"The film\",\"response\":\" is good\"}\n".to_owned();
    let cases = [
        (line(",\"finish_reason\":\"stop\""), &ended),
        (line(",\"finish_reason\":\"stop\",\"stop_reason\":null"), &ended),
        // A stop token's id.
        (line(",\"finish_reason\":\"stop\",\"stop_reason\":128009"), &ended),
        (line(",\"finish_reason\":\"stop\",\"eos\":false"), &open),
        (line(",\"finish_reason\":\"length\""), &open),
        (line(",\"finish_reason\":\"length\",\"eos\":true"), &ended),
        (line(",\"finish_reason\":\"stop\",\"stop_reason\":\" good\""), &longer),
        (line(",\"finish_reason\":null,\"eos\":null"), &open),
    ];
    let all: String =
        cases.iter().flat_map(|(line, same)| [line.as_str(), same.as_str()]).collect();
    let scores = lines(&stdout(&scored(&golden_guide(), &all, &[])));
    for (pair, (line, _)) in scores.chunks(2).zip(&cases) {
        assert_eq!(pair[0], pair[1], "{line}");
    }
    assert!(scores[0] != scores[7] && scores[7] != scores[12]);
    let output = scored(&golden_guide(), &(line(",\"eos\":\"yes\"") + &open), &[]);
    assert_refused(&output, "line 1: `eos`: invalid type: string \"yes\", expected a boolean");
}

/// Goal: an answer that failed is a failure again, with its id and its other fields; the others are scored.
#[test]
fn failed_answers_stay_failures() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.jsonl");
    let long = "word ".repeat(200);
    let text = format!(
        "{{\"prompt\":\"A\"}}\n{{\"prompt\":\"{long}\",\"id\":\"long\",\"dataset\":\"d\"}}\n"
    );
    std::fs::write(&prompts, text).unwrap();
    let flags = ["--prompts", prompts.to_str().unwrap(), "--max-new-tokens", "4"];
    let output = search(&flags);
    assert_eq!(output.status.code(), Some(2));
    let answers = String::from_utf8(output.stdout).unwrap();
    let failure = &lines(&answers)[1];
    assert_eq!(failure["dataset"], "d");
    let output = scored(&golden_guide(), &answers, &[]);
    assert_eq!(output.status.code(), Some(2));
    let scores = lines(&String::from_utf8(output.stdout).unwrap());
    assert!(scores[0]["gain"].is_number());
    let reason = scores[1]["error"].as_str().unwrap();
    let was = failure["error"].as_str().unwrap();
    assert!(reason.contains(&format!("line 2: is an answer that failed: {was}")), "{reason}");
    let rest = (&scores[1]["line"], &scores[1]["id"], &scores[1]["dataset"]);
    assert_eq!(rest, (&2.into(), &"long".into(), &"d".into()));
    // Also where all have failed: that is an answer to each of them.
    let failures = answers.lines().nth(1).unwrap();
    let output = scored(&golden_guide(), failures, &[]);
    assert_eq!(lines(&String::from_utf8(output.stdout).unwrap()).len(), 1);
}

/// Goal: answers may be prompts: their own fields are replaced, all others stay, no field stands twice.
#[test]
fn answers_can_be_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let prompts = "{\"z\":1,\"prompt\":\"The film\",\"id\":7,\"a\":\"b\"}\n{\"prompt\":\"A\"}\n";
    std::fs::write(path("prompts"), prompts).unwrap();
    let (base, guide) = (model("gpt2"), golden_guide());
    let run = |file: &str, more: &[&str]| {
        answers(&base, &guide, &path(file), &[&["--max-new-tokens", "6"], more].concat())
    };
    let with_ids = run("prompts", &["--token-ids"]);
    std::fs::write(path("answers"), &with_ids).unwrap();
    assert_eq!(run("answers", &["--token-ids"]), with_ids);
    // Without the flag no token ids are there that would be another response's.
    let without = run("answers", &["--seed", "9"]);
    std::fs::write(path("others"), &without).unwrap();
    assert_eq!(run("prompts", &["--seed", "9"]), without);
    let output = search(&["--prompts", &path("answers"), "--max-new-tokens", "2"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("answers have `eos`, `finish_reason`, `gain`"), "{said}");
}

/// Goal: --token-ids makes a single answer a line of JSON, and is refused where the base model tells no tokens.
#[test]
fn token_ids_need_a_base_that_tells_them() {
    let answer =
        lines(&stdout(&search(&["--prompt", "A", "--max-new-tokens", "3", "--token-ids"])));
    assert_eq!(answer[0]["token_ids"].as_array().unwrap().len(), answer[0]["tokens"]);
    let (tuned, untuned) = (model("gpt2_tuned"), model("gpt2"));
    let server = ["search", "--base-url", "http://127.0.0.1:9", "--base-model", "m"];
    let flags = ["--tuned", &tuned, "--untuned", &untuned, "--prompt", "A", "--token-ids"];
    let output = trimtab(&[&server[..], &flags].concat());
    assert_refused(
        &output,
        "--token-ids cannot be with --base-url: a server does not tell its tokens",
    );
    // Without a guide nothing was read.
    let base = ["search", "--base", &untuned, "--method", "sample", "--max-new-tokens", "3"];
    let answer = lines(&stdout(&trimtab(&[&base[..], &["--prompt", "A", "--token-ids"]].concat())));
    assert!(answer[0].get("guide_tokens").is_none() && answer[0]["token_ids"].is_array());
}
