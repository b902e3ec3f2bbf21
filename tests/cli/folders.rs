//! What the program says of a model's folder, and what it makes of it. Folders are read before a device has a part in
//! it, so the emulator has nothing to add.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A copy of a golden model in which `change` has edited a JSON file.
fn edited(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_model(name, folder.path());
    let path = folder.path().join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
    folder
}

fn path(folder: &TempDir) -> String {
    folder.path().to_str().unwrap().to_owned()
}

/// Goal: a field that trimtab does not know is said, once however often the folder is named, and in `inspect`.
#[test]
fn a_field_that_is_not_known_is_said_once() {
    if device() == "emulator" {
        return;
    }
    let copy = edited("gpt2", "config.json", |config| config["logit_cap"] = json!(30.0));
    let folder = &path(&copy);
    let output = trimtab(&[
        "search",
        "--base",
        folder,
        "--tuned",
        folder,
        "--untuned",
        folder,
        "--prompt",
        "The film",
        "--max-new-tokens",
        "4",
    ]);
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    stdout(&output);
    assert_eq!(errors.matches("`logit_cap`").count(), 1, "{errors}");
    assert!(errors.contains("warning: "), "{errors}");
    let text = stdout(&trimtab(&["inspect", folder]));
    assert!(text.contains("warning") && text.contains("`logit_cap`"), "{text}");
    let json = lines(&stdout(&trimtab(&["inspect", folder, "--json"]))).remove(0);
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
    assert!(!stdout(&trimtab(&["inspect", &model("gpt2")])).contains("warning"));
}

/// Goal: `inspect` shows every end token with the files that name it, and says where they differ.
#[test]
fn inspect_shows_who_names_an_end_token() {
    let plain = stdout(&trimtab(&["inspect", &model("gpt2")]));
    let all = "<|endoftext|> (399), named by tokenizer_config.json and generation_config.json and config.json";
    assert!(plain.contains(all) && !plain.contains("differ"), "{plain}");
    let change = |config: &mut Value| config["eos_token_id"] = json!([5, 399]);
    let folder = edited("gpt2", "config.json", change);
    let text = stdout(&trimtab(&["inspect", &path(&folder)]));
    assert!(text.contains("(5), named by config.json") && text.contains("differ"), "{text}");
}

/// Goal: a text ends at the token that any of the three files names.
#[test]
fn any_file_can_name_the_end_of_a_text() {
    if device() == "emulator" {
        return;
    }
    let greedy = |folder: &str| {
        let output = trimtab(&[
            "search",
            "--base",
            folder,
            "--method",
            "sample",
            "--temperature",
            "0",
            "--prompt",
            "The film",
            "--max-new-tokens",
            "12",
            "--token-ids",
        ]);
        let answer = lines(&stdout(&output)).remove(0);
        let ids: Vec<u64> = serde_json::from_value(answer["token_ids"].clone()).unwrap();
        (ids, answer["finish_reason"].clone())
    };
    let (plain, _) = greedy(&model("gpt2"));
    // The first token that is not the first one again.
    let at = (1..plain.len()).find(|&at| !plain[..at].contains(&plain[at])).unwrap();
    let end = plain[at];
    let tokenizer = trimtab::text::Tokenizer::open(Path::new(&model("gpt2"))).unwrap();
    let name = tokenizer.name(end as u32).unwrap().to_owned();
    for (file, field, value) in [
        ("config.json", "eos_token_id", json!(end)),
        ("generation_config.json", "eos_token_id", json!([end])),
        ("tokenizer_config.json", "eos_token", json!(name)),
    ] {
        let folder = edited("gpt2", file, |config| config[field] = value);
        let (ids, finish) = greedy(&path(&folder));
        assert_eq!((&ids[..], finish), (&plain[..=at], json!("stop")), "{file}");
    }
}

/// Goal: `--system` is the system message of a conversation that has none, for base and guide, and is refused
/// where no prompt would have it.
#[test]
fn a_system_message_can_be_given() {
    if device() == "emulator" {
        return;
    }
    let (base, tuned) = (model("llama"), model("llama_tuned"));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, messages: Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, json!({ "prompt": messages }).to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let user = json!({"role": "user", "content": "Hello"});
    let plain = file("plain.jsonl", json!([user]));
    let search = |prompts: &str, more: &[&str]| {
        let mut args = vec!["search", "--base", &base, "--tuned", &tuned, "--untuned", &base];
        args.extend(["--max-new-tokens", "6", "--seed", "3", "--prompts", prompts]);
        args.extend(more);
        let answer = lines(&stdout(&trimtab(&args))).remove(0);
        (answer["response"].clone(), answer["gain"].clone())
    };
    let without = search(&plain, &[]);
    for system in ["", "Be kind."] {
        let own = json!([{"role": "system", "content": system}, user]);
        let given = search(&plain, &["--system", system]);
        assert_ne!(given, without, "{system:?}");
        // The random numbers are named by the prompt, so greedy ones are compared.
        let greedy = ["--temperature", "0"];
        let given = search(&plain, &[&["--system", system], &greedy[..]].concat());
        assert_eq!(given, search(&file("own.jsonl", own.clone()), &greedy), "{system:?}");
        let kept = search(&file("own.jsonl", own.clone()), &["--system", "another"]);
        assert_eq!(kept, search(&file("own.jsonl", own), &[]), "a message of its own stays");
    }
    let text = file("text.jsonl", json!("Hello"));
    let args = ["search", "--base", &base, "--tuned", &tuned, "--untuned", &base, "--system", "x"];
    let refused = trimtab(&[&args[..], &["--prompts", &text]].concat());
    assert_refused(&refused, "--system needs --chat");
    assert!(trimtab(&[&args[..], &["--prompts", &text, "--chat"]].concat()).status.success());
    let pair = folder.path().join("pair.jsonl");
    std::fs::write(&pair, json!({"prompt": "a", "response": " b"}).to_string()).unwrap();
    let pair = pair.to_str().unwrap();
    let score = ["score", "--tuned", &tuned, "--untuned", &base, "--input", pair, "--system", "x"];
    assert_refused(&trimtab(&score), "--system needs --chat");
    assert!(trimtab(&[&score[..], &["--chat"]].concat()).status.success());
}
