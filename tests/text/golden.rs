//! Against transformers.

use std::fs;
use std::path::Path;

use serde_json::Value;
use trimtab::text::{Bos, Prompt, Tokenizer};

use crate::fixtures::format;

/// Cases that transformers wrote, with its tokenizers beside them.
#[test]
fn golden_texts_are_those_of_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let cases = fs::read(golden.join("text.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let model = case["model"].as_str().unwrap();
        let tokenizer = Tokenizer::open(&golden.join(model)).unwrap();
        if let Some(rendered) = case["rendered"].as_str() {
            let prompt: Prompt = serde_json::from_value(case["messages"].clone()).unwrap();
            assert_eq!(format(tokenizer, true).render(&prompt).unwrap().text, rendered, "{case}");
            continue;
        }
        let text = case["text"].as_str().unwrap();
        let ids = |field: &str| serde_json::from_value::<Vec<u32>>(case[field].clone()).unwrap();
        let plain = ids("ids_without_special");
        assert_eq!(tokenizer.encode(text, Bos::Never).unwrap(), plain, "{case}");
        // transformers doubles a mark that the text begins with; we do not.
        let with_front = ids("ids_with_special");
        let front = with_front.strip_suffix(&plain[..]).unwrap();
        let wanted = if plain.starts_with(front) { &plain } else { &with_front };
        assert_eq!(&tokenizer.encode(text, Bos::Auto).unwrap(), wanted, "{case}");
        // Decoded with the special tokens' names, which add nothing to running text.
        let bytes: Vec<u8> = plain
            .iter()
            .flat_map(|&id| match tokenizer.name(id) {
                Some(name) if tokenizer.is_special(id) => name.as_bytes().to_vec(),
                _ => tokenizer.bytes(id).to_vec(),
            })
            .collect();
        let decoded = case["decoded"].as_str().unwrap();
        let written = String::from_utf8_lossy(&bytes);
        let stripped = written.strip_prefix(' ').unwrap_or(&written);
        assert!(written == decoded || stripped == decoded, "{written:?} in {case}");
    }
}
