//! What a config.json means where it says nothing, says null, or says it in another way.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use trimtab::engine::Config;
use trimtab::error::Error;

/// A golden model's config with some fields changed; `None` takes one out.
fn config(name: &str, fields: &[(&str, Option<Value>)]) -> Result<Config, Error> {
    let path = format!("{}/tests/golden/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (field, value) in fields {
        match value {
            Some(value) => config[field] = value.clone(),
            None => drop(config.as_object_mut().unwrap().remove(*field)),
        }
    }
    Config::parse("config.json", &config.to_string())
}

/// Goal: what transformers' MistralConfig has where a field is missing, and what null means there.
#[test]
fn missing_and_null_are_not_the_same_for_mistral() {
    let window = |value| config("mistral", &[("sliding_window", value)]).unwrap().window;
    assert_eq!(window(None), Some(4096));
    assert_eq!(window(Some(Value::Null)), None);
    assert_eq!(window(Some(json!(7))), Some(7));
    let heads = |value| {
        let more = [("num_attention_heads", Some(json!(8))), ("head_dim", Some(json!(16)))];
        config("mistral", &[&more[..], &[("num_key_value_heads", value)]].concat())
            .unwrap()
            .heads
            .kv
    };
    assert_eq!(heads(None), 8);
    assert_eq!(heads(Some(json!(2))), 2);
    let of_four = [("num_attention_heads", Some(json!(4))), ("head_dim", Some(json!(16)))];
    let null = [&of_four[..], &[("num_key_value_heads", Some(Value::Null))]].concat();
    assert_eq!(config("mistral", &null).unwrap().heads.kv, 4);
}

/// Goal: 1 is 1.0.
#[test]
fn whole_numbers_may_be_written_as_such() {
    let factor = |value| config("llama3", &[("partial_rotary_factor", Some(value))]);
    assert!(factor(json!(1)).is_ok() && factor(json!(1.0)).is_ok());
    assert!(factor(json!(0.5)).unwrap_err().to_string().contains("only 1.0"));
}

/// Goal: the file that names an end token that there is not is the one that is blamed.
#[test]
fn a_bad_end_token_is_blamed_on_its_own_file() {
    let folder = tempfile::tempdir().unwrap();
    let golden = format!("{}/tests/golden/gpt2/config.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::copy(golden, folder.path().join("config.json")).unwrap();
    let generation = folder.path().join("generation_config.json");
    std::fs::write(&generation, "{\"eos_token_id\": [1, 999999]}").unwrap();
    let error = Config::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("999999"), "{error}");
}
