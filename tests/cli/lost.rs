use super::*;

/// Best-of-16 of a base that writes up to `tokens` tokens, by a guide with 128 positions and another tokenizer.
fn best_of_16(tokens: &str, more: &[&str]) -> Output {
    let models =
        ["--base", &model("llama"), "--tuned", &model("gpt2_tuned"), "--untuned", &model("gpt2")];
    let flags = ["search", "--method", "bon", "--prompt", "The film", "--max-new-tokens", tokens];
    trimtab(&[&flags, &models[..], more].concat())
}

/// Goal: candidates that outgrow the guide's context lose, and their search goes on: the trace says which and why,
/// and the best of the others is the answer.
#[test]
fn candidates_that_outgrow_the_guide_lose_and_their_search_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    let output = best_of_16("62", &["--json", "--trace", trace.to_str().unwrap()]);
    let answer = lines(&stdout(&output)).remove(0);
    let steps = lines(&std::fs::read_to_string(trace).unwrap());
    let candidates = steps[0]["candidates"].as_array().unwrap();
    let (lost, scored): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|candidate| candidate.get("lost").is_some());
    assert_eq!((steps.len(), candidates.len()), (1, 16));
    assert!(lost.len() > 1 && scored.len() > 1, "{} of 16 are lost", lost.len());
    for candidate in lost {
        let reason = candidate["lost"].as_str().unwrap();
        assert!(reason.contains("the guide model's context holds 128 tokens, but "), "{reason}");
        assert!(candidate["gain"].is_null() && candidate["rank"].is_null(), "{candidate}");
    }
    let gains = scored.iter().map(|candidate| candidate["gain"].as_f64().unwrap());
    assert_eq!(answer["gain"].as_f64().unwrap(), gains.fold(f64::MIN, f64::max));
}

/// Goal: where every candidate outgrows the guide's context, the search fails with that reason.
#[test]
fn a_search_fails_where_no_candidate_is_left() {
    let output = best_of_16("150", &["--json"]);
    assert_refused(&output, "the guide model's context holds 128 tokens, but ");
    let answer = lines(&String::from_utf8(output.stdout).unwrap()).remove(0);
    assert!(answer["error"].as_str().unwrap().contains("context holds 128 tokens"), "{answer}");
}
