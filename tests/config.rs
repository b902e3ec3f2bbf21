//! What a config.json means where it says nothing, says null, or says it in another way.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use trimtab::engine::config::EndToken;
use trimtab::engine::{Config, ModelFiles};
use trimtab::error::Error;
use trimtab::folder::Notes;

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
    let window =
        |value| config("mistral", &[("sliding_window", value)]).unwrap().attention[0].window;
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

/// A golden model's folder with other content in some files; `None` takes one out.
fn folder(name: &str, files: &[(&str, Option<&str>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    for (file, content) in files {
        let path = folder.path().join(file);
        match content {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
    }
    folder
}

fn open(folder: &TempDir) -> Result<(Config, Notes), Error> {
    Config::open(folder.path())
}

/// Goal: the file that names an end token that does not exist is the one that is blamed.
#[test]
fn a_bad_end_token_is_blamed_on_its_own_file() {
    let files = [("generation_config.json", Some("{\"eos_token_id\": [1, 999999]}"))];
    let error = open(&folder("gpt2", &files)).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("999999"), "{error}");
}

/// Goal: GPT-2's end token, which transformers writes into configs of other vocabularies too, is left to the
/// tokenizer there, and said; in no other family is a token beyond the vocabulary passed over.
#[test]
fn the_default_end_token_of_gpt2_is_left_to_the_tokenizer() {
    let eos = |model: &str, id: u32| {
        let fields = [("eos_token_id", Some(json!(id)))];
        config(model, &fields).map(|config| config.ends.config)
    };
    assert_eq!(eos("gpt2", 50256).unwrap(), [] as [u32; 0]);
    assert!(eos("gpt2", 50255).is_err());
    assert!(eos("llama", 50256).is_err());
    let files = [("generation_config.json", Some("{\"eos_token_id\": [50256, 399]}"))];
    let (config, notes) = open(&folder("gpt2", &files)).unwrap();
    assert_eq!(config.ends.generation, [399]);
    assert!(notes.warnings.len() == 1 && notes.warnings[0].contains("50256"), "{notes:?}");
}

/// Goal: every file's end tokens end a text, each is shown with the files that name it, and the tokenizer's comes
/// first, since it is the one that ends a given text.
#[test]
fn end_tokens_are_those_of_all_files() {
    let files = [("generation_config.json", Some("{\"eos_token_id\": [7, 5]}"))];
    let (mut config, _) = open(&folder("gpt2", &files)).unwrap();
    config.ends.config = vec![5, 3, 5];
    let end = |id, sources: &[&'static str]| EndToken { id, sources: sources.to_vec() };
    let (own, generation, by_config) =
        ("tokenizer_config.json", "generation_config.json", "config.json");
    assert_eq!(
        config.ends.all(Some(3)),
        [end(3, &[own, by_config]), end(7, &[generation]), end(5, &[generation, by_config])]
    );
    assert_eq!(config.ends.all(None)[0], end(7, &[generation]));
}

/// Goal: fields that contradict each other are refused where versions of transformers differ in which counts, or
/// where a number would be lost.
#[test]
fn contradictions_are_refused() {
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let theta = json!({"rope_type": "default", "rope_theta": 500.0});
    /// A model, fields of its config, and words of the error.
    type Case<'a> = (&'a str, &'a [(&'a str, Value)], &'a [&'a str]);
    let cases: [Case<'_>; 8] = [
        (
            "llama",
            &[("rope_scaling", linear.clone()), ("rope_parameters", theta.clone())],
            &["500"],
        ),
        ("llama", &[("rope_parameters", theta), ("rope_theta", json!(300.0))], &["300", "500"]),
        ("llama", &[("layer_types", json!(["full_attention", "sliding_attention"]))], &["Mistral"]),
        ("mistral", &[("layer_types", json!(["full_attention"]))], &["1 layers"]),
        ("mistral", &[("layer_types", json!(["full_attention", "chunked"]))], &["chunked"]),
        ("gpt2", &[("hidden_size", json!(32))], &["n_embd", "hidden_size"]),
        ("gpt2", &[("model_type", json!("llama"))], &["GPT2LMHeadModel", "llama"]),
        ("llama", &[("rope_parameters", json!({"rope_type": "longrope"}))], &["longrope", "yarn"]),
    ];
    for (model, fields, words) in cases {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| (*name, Some(value.clone()))).collect();
        let error = config(model, &fields).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
    let both = [
        ("sliding_window", Some(Value::Null)),
        ("layer_types", Some(json!(["sliding_attention", "full_attention"]))),
    ];
    assert!(config("mistral", &both).unwrap_err().to_string().contains("sliding_window"));
}

/// Goal: a setting that trimtab does not know, and one that another overrides, are said.
#[test]
fn what_is_ignored_is_said() {
    let golden = folder("llama", &[]);
    let path = golden.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["logit_cap"] = json!(30.0);
    config["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0});
    fs::write(&path, config.to_string()).unwrap();
    let (_, notes) = open(&golden).unwrap();
    let said = |word: &str| notes.warnings.iter().any(|warning| warning.contains(word));
    assert!(notes.warnings.len() == 2 && said("`logit_cap`") && said("rope_scaling"), "{notes:?}");
    let files = [("generation_config.json", Some("{\"temperature\": 0.6, \"top_k\": 50}"))];
    let (_, notes) = open(&folder("llama", &files)).unwrap();
    assert_eq!(notes.warnings, Vec::<String>::new());
    assert!(notes.remarks.len() == 1 && notes.remarks[0].contains("temperature 0.6"), "{notes:?}");
    assert!(!notes.remarks[0].contains("top_k"), "{notes:?}");
}

/// Goal: what people point at in place of a model's folder is an error that names the cure.
#[test]
fn folders_that_are_no_models_name_the_cure() {
    let error = |folder: &TempDir| ModelFiles::open(folder.path()).err().unwrap().to_string();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    for file in ["model.safetensors", "config.json", "generation_config.json"] {
        let error = error(&folder("llama", &[(file, Some(pointer))]));
        assert!(error.contains("git lfs pull") && error.contains(file), "{error}");
    }
    let adapter = [("adapter_config.json", Some("{}"))];
    assert!(error(&folder("llama", &adapter)).contains("not clear which"));
    let adapter = [adapter[0], ("model.safetensors", None)];
    assert!(error(&folder("llama", &adapter)).contains("merge_and_unload"));
    let adapter = [adapter[0], adapter[1], ("config.json", None)];
    assert!(error(&folder("llama", &adapter)).contains("merge_and_unload"));
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir_all(cache.path().join("snapshots/abc")).unwrap();
    assert!(error(&cache).contains("snapshots/abc"));
    let gguf = folder("llama", &[("config.json", None), ("m.gguf", Some("GGUF"))]);
    assert!(error(&gguf).contains("GGUF"));
    let own = folder("llama", &[("config.json", None), ("consolidated.00.pth", Some(""))]);
    assert!(error(&own).contains("Hugging Face"));
    let nan = folder("llama", &[("config.json", Some("{\"rope_theta\": NaN}"))]);
    assert!(error(&nan).contains("NaN in line 1"));
    let link = folder("llama", &[("generation_config.json", None)]);
    std::os::unix::fs::symlink("../blobs/gone", link.path().join("generation_config.json"))
        .unwrap();
    let error = error(&link);
    assert!(error.contains("generation_config.json") && error.contains("blobs/gone"), "{error}");
}
