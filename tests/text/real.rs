//! A real model's tokenizer and chat template against transformers.

use std::fs;
use std::path::Path;

use serde_json::Value;
use trimtab::text::{Bos, Prompt, Tokenizer};

use crate::fixtures::format;

/// Goal: what people write to a real model becomes exactly the tokens that transformers makes of
/// it. `tests/real/check.py` compares the sums of their log-probabilities, in which another token
/// of a long text could hide.
#[test]
#[ignore = "reads the folder that tools/real_models.py makes"]
fn a_real_models_tokens_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tokenizer = || Tokenizer::open(&root.join(".real/smollm2-135m-instruct")).unwrap();
    let (plain, chats) = (format(tokenizer(), false), format(tokenizer(), true));
    let cases = fs::read(root.join("tests/real/smollm2.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    let cases: Vec<&Value> = cases.iter().filter(|case| case["ids"].is_array()).collect();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    for case in cases {
        let prompt: Prompt = serde_json::from_value(case["prompt"].clone()).unwrap();
        let mut text = match case["rendered"].as_str() {
            Some(rendered) => {
                assert_eq!(chats.render(&prompt).unwrap().text, rendered, "{case}");
                rendered.to_owned()
            }
            None => case["prompt"].as_str().unwrap().to_owned(),
        };
        text.push_str(case["response"].as_str().unwrap());
        let mut ids = plain.tokenizer.encode(&text, Bos::Auto).unwrap();
        if case["eos"] == true {
            ids.push(plain.tokenizer.eos().unwrap());
        }
        let right: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(ids, right, "{case}");
    }
}
