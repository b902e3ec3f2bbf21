//! Every field of a model folder's files is known: to trimtab as to transformers, whose classes
//! tools/golden/settings.py has walked.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use trimtab::engine::Config;
use trimtab::engine::families::FAMILIES;
use trimtab::engine::fields::{GENERATION_TABLE, ROPE_TABLE};
use trimtab::folder::{FieldTable, JsonFile, Rule};
use trimtab::text::Tokenizer;
use trimtab::text::fields::{
    ADDED_TOKEN_TABLE, CONFIG_TABLE, MODEL_TABLE, SPECIAL_TOKENS_TABLE, TOKENIZER_TABLE,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden(path: &str) -> Value {
    let path = root().join("tests/golden").join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Fields of `lists`, objects of names and defaults, that a table does not know, and defaults that it refuses.
fn gaps(what: &str, table: &FieldTable, lists: &[&Value]) -> Vec<String> {
    let mut gaps = Vec::new();
    for (name, default) in lists.iter().flat_map(|list| list.as_object().unwrap()) {
        let file =
            JsonFile::parse("f".into(), json!({ name: default }).to_string().as_bytes()).unwrap();
        if table.rule(name).is_none() {
            gaps.push(format!("{what}: {name} is in no list"));
        } else if let Err(error) = table.check(&file) {
            gaps.push(format!("{what}: the default of transformers is refused: {error}"));
        }
    }
    gaps
}

/// Goal: no field that transformers has is forgotten, and no folder is refused for a default.
#[test]
fn every_field_of_transformers_is_known() {
    let all = golden("settings.json");
    let config = &all["config.json"];
    let mut complaints = Vec::new();
    for family in &FAMILIES {
        let lists = ["base", family.model_type, "generation", "legacy"].map(|list| &config[list]);
        complaints.extend(gaps(family.architecture, &family.fields, &lists));
    }
    complaints.extend(gaps("rope_parameters", &ROPE_TABLE, &[&config["rope_parameters"]]));
    let generation = &all["generation_config.json"];
    complaints.extend(gaps("generation_config.json", &GENERATION_TABLE, &[generation]));
    for list in all["tokenizer_config.json"].as_object().unwrap().values() {
        complaints.extend(gaps("tokenizer_config.json", &CONFIG_TABLE, &[list]));
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(config["llama"].as_object().unwrap().len() > 30, "the inventory is empty");
}

/// Goal: what a table calls obeyed is read: a value that makes no sense is an error that names the field.
#[test]
fn obeyed_fields_of_config_are_read() {
    for (family, folder) in FAMILIES.iter().zip(["gpt2", "llama3", "mistral"]) {
        let obeyed = family.fields.fields().filter(|field| field.rule == Rule::Obeyed);
        let names: Vec<_> = obeyed.map(|field| field.name).collect();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let mut config = golden(&format!("{folder}/config.json"));
            if family.model_type != "gpt2" {
                config.as_object_mut().unwrap().remove("rope_parameters");
                config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0});
            }
            Config::parse("config.json", &config.to_string()).unwrap();
            config[name] = json!([["nonsense"]]);
            match Config::parse("config.json", &config.to_string()) {
                Ok(_) => panic!("{folder}: {name} is not read"),
                Err(error) => assert!(error.to_string().contains(name), "{name}: {error}"),
            }
        }
    }
}

/// Goal: the same for rotary positions, of which each kind reads its own fields.
#[test]
fn obeyed_fields_of_rotary_positions_are_read() {
    let kinds = [
        json!({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        json!({"rope_type": "yarn", "factor": 2.0}),
        json!({"type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0}),
    ];
    let refuses = |rope: &Value, name: &str| {
        let mut config = golden("llama/config.json");
        config["rope_parameters"] = rope.clone();
        Config::parse("config.json", &config.to_string()).unwrap();
        config["rope_parameters"][name] = json!([["nonsense"]]);
        Config::parse("config.json", &config.to_string()).is_err()
    };
    let names =
        ROPE_TABLE.fields().filter(|field| field.rule == Rule::Obeyed).map(|field| field.name);
    for name in names {
        assert!(kinds.iter().any(|kind| refuses(kind, name)), "{name} is not read");
    }
}

/// Goal: the same for a tokenizer's side files.
#[test]
fn obeyed_fields_of_tokenizers_are_read() {
    let open = |name: &str, file: &str, config: &Value, map: &Value| {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = root().join("tests/golden/gpt2/tokenizer.json");
        std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
        for (path, mut content) in
            [("tokenizer_config.json", config.clone()), ("special_tokens_map.json", map.clone())]
        {
            if path == file {
                content[name] = json!([["nonsense"]]);
            }
            std::fs::write(folder.path().join(path), content.to_string()).unwrap();
        }
        Tokenizer::open(folder.path()).map(drop)
    };
    for table in [&CONFIG_TABLE, &SPECIAL_TOKENS_TABLE] {
        for field in table.fields().filter(|field| field.rule == Rule::Obeyed) {
            let name = field.name.replace('*', "bos");
            let empty = json!({});
            open("", "", &empty, &empty).unwrap();
            let error = open(&name, table.file, &empty, &empty);
            let error = error.expect_err(&format!("{} {name} is not read", table.file)).to_string();
            assert!(error.contains(&name), "{name}: {error}");
        }
    }
}

/// Goal: docs/fields.md says what the code does. `UPDATE_DOCS=1` writes it.
#[test]
fn the_page_of_fields_is_that_of_the_code() {
    let mut page = String::from(PAGE);
    let mut section = |title: &str, table: &FieldTable| {
        write!(page, "\n## {title}\n\n| field | |\n|---|---|\n").unwrap();
        for field in table.fields() {
            let rule = match field.rule {
                Rule::Obeyed => "obeyed".to_owned(),
                Rule::Only([]) => "refused unless it is null".to_owned(),
                Rule::Only(values) => format!("refused unless it is `{}`", values.join("`, `")),
                Rule::NoEffect(reason) => format!("no effect: {reason}"),
            };
            writeln!(page, "| `{}` | {rule} |", field.name).unwrap();
        }
    };
    for family in &FAMILIES {
        section(&format!("`config.json` of {}", family.architecture), &family.fields);
    }
    section("`rope_parameters` and `rope_scaling` in `config.json`", &ROPE_TABLE);
    section("`generation_config.json`", &GENERATION_TABLE);
    section("`tokenizer_config.json`", &CONFIG_TABLE);
    section("`special_tokens_map.json`", &SPECIAL_TOKENS_TABLE);
    section("A token with flags, in all files", &ADDED_TOKEN_TABLE);
    section("`tokenizer.json`", &TOKENIZER_TABLE);
    section("`model` in `tokenizer.json`", &MODEL_TABLE);
    let path: PathBuf = root().join("docs/fields.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/fields.md is stale: run UPDATE_DOCS=1 cargo test --test fields");
}

const PAGE: &str = "\
# The fields of a model's folder

trimtab knows every field that the files of a model's folder may have. It obeys a field, or refuses values that
would change a result, or leaves the field without effect for a reason. A field that is in none of these lists
is a warning on stderr, once, and a line of `trimtab inspect`; in `tokenizer.json` it is an error. `tests/fields.rs` holds the lists against the classes
of transformers, and this page against the lists.

`adapter_config.json` is refused as a whole: trimtab does not merge LoRA adapters. `added_tokens.json` has tokens
in place of fields; it is read where `tokenizer_config.json` has no `added_tokens_decoder`, and so is
`special_tokens_map.json`. `chat_template.jinja` counts before the field `chat_template`.
";

/// Goal: a token's flags are checked one by one.
#[test]
fn flags_of_tokens_are_read() {
    for field in ADDED_TOKEN_TABLE.fields().filter(|field| !["id", "__type"].contains(&field.name))
    {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = root().join("tests/golden/gpt2/tokenizer.json");
        std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
        let mut token = Map::from_iter([("content".to_owned(), json!("<x>"))]);
        token.insert(field.name.to_owned(), json!([["nonsense"]]));
        let config = json!({ "added_tokens_decoder": { "400": token } });
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        assert!(Tokenizer::open(folder.path()).is_err(), "{}", field.name);
    }
}
