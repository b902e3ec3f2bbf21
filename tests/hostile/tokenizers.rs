//! Tokenizers that make too much of a text, or of themselves.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trimtab::text::{Bos, Tokenizer};

use crate::Folder;
use crate::child::{given, measured, outcome};

/// Opens the tokenizer that the other tests name, and encodes a text; nothing if none does.
#[test]
fn child() {
    let Some(path) = given() else { return };
    let text = "a".repeat(50_000) + "b é";
    measured(|| Tokenizer::open(&path)?.encode(&text, Bos::Auto));
}

/// A tokenizer of which some parts are others, and what is said of it.
fn outcome_with(changes: &[(&str, Value)]) -> (String, bool) {
    let folder = Folder::of("gpt2");
    change(folder.path(), changes);
    outcome("tokenizers::child", folder.path())
}

fn change(folder: &Path, changes: &[(&str, Value)]) {
    let path = folder.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (name, part) in changes {
        json[name] = part.clone();
    }
    fs::write(path, json.to_string()).unwrap();
}

fn sequence(name: &str, part: &Value, count: usize) -> Value {
    json!({"type": "Sequence", name: vec![part; count]})
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// `count` marks with ids behind the vocabulary.
fn marks(count: usize) -> Value {
    (0..count)
        .map(|index| {
            json!({"id": 100_000 + index, "content": format!("<{index}>"), "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect()
}

/// A post-processor that puts tokens in front of a text, by the ids of one name and by names.
fn front(ids: usize, names: usize) -> Value {
    let mut single = vec![json!({"SpecialToken": {"id": "a", "type_id": 0}}); names];
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    let tokens = vec!["a"; ids];
    json!({"type": "TemplateProcessing", "single": single, "pair": single,
        "special_tokens": {"a": {"id": "a", "ids": vec![0; ids], "tokens": tokens}}})
}

/// A table of characters, in base 64: no index, and one text.
fn table(text: &str) -> String {
    assert_eq!(text, "a".repeat(999));
    // Four zero bytes, then threes of "a", and two zero bytes.
    format!("AAAAAGFh{}YQAA", "YWFh".repeat(332))
}

/// Goal: what would multiply a text is refused before there is a text, and the message says the limit.
#[test]
fn tokenizers_that_multiply_are_refused() {
    let letter = json!({"String": "a"});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let long = "a".repeat(1_000_000);
    let cases = [
        ("normalizer", sequence("normalizers", &replace(letter.clone(), "aaaaaaaaaa"), 12), "64"),
        ("normalizer", replace(json!({"Regex": ""}), &long), "64"),
        ("normalizer", json!({"type": "Prepend", "prepend": long}), "64"),
        ("normalizer", sequence("normalizers", &json!({"type": "NFKC"}), 100_000), "4096"),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": table(&long[..999])}),
            "64",
        ),
        ("pre_tokenizer", sequence("pretokenizers", &byte_level, 30), "64"),
        ("decoder", sequence("decoders", &replace(letter, "aaaaaaaaaa"), 12), "64"),
        ("post_processor", front(1_000_000, 1), "4194304"),
        ("post_processor", front(1, 100_000), "4194304"),
        ("post_processor", front(1000, 1), "64"),
        ("post_processor", front(3000, 1), "4096"),
        ("post_processor", front(1, 300), "64"),
        ("added_tokens", marks(300_000), "262144"),
        (
            "added_tokens",
            json!([{"id": 100_000, "content": "a".repeat(17 << 20), "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}]),
            "16777216",
        ),
    ];
    for (name, part, limit) in cases {
        let (said, is_fine) = outcome_with(&[(name, part.clone())]);
        let part: String = part.to_string().chars().take(200).collect();
        let said: String = said.chars().take(600).collect();
        let is_refused = said.contains("refused: ") && said.contains("tokenizer.json");
        assert!(is_fine && is_refused && said.contains(limit), "{name} {part}: {said}");
    }
}

/// Goal: a regular expression that tries everything ends.
#[test]
fn regular_expressions_end() {
    let pattern = json!({"Regex": "(a|a)+$"});
    let split =
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    for change in [("normalizer", replace(pattern, "b")), ("pre_tokenizer", split)] {
        let (said, is_fine) = outcome_with(std::slice::from_ref(&change));
        assert!(is_fine && said.contains("takes too many steps"), "{change:?}: {said}");
    }
}

/// Goal: no tokenizer that a model has is refused for what others could do with the same parts.
#[test]
fn tokenizers_as_models_have_them_are_taken() {
    let space = json!({"String": " "});
    let parts = [
        json!({"type": "Prepend", "prepend": "▁"}),
        replace(space, "▁"),
        replace(json!({"String": "``"}), "\""),
        replace(json!({"Regex": " {2,}"}), "▁"),
        json!({"type": "NFKC"}),
        json!({"type": "Lowercase"}),
    ];
    let (said, is_fine) =
        outcome_with(&[("normalizer", json!({"type": "Sequence", "normalizers": parts}))]);
    assert!(is_fine && said.contains("taken"), "{said}");
    let (said, is_fine) = outcome_with(&[("added_tokens", marks(30_000))]);
    assert!(is_fine && said.contains("taken"), "{said}");
}
