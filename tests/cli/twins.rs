use super::resized::{add_token, edit, resized};
use super::*;

fn path(folder: &tempfile::TempDir) -> String {
    folder.path().to_str().unwrap().to_owned()
}

/// A golden model with a token more than the others have: in its table too, or in its tokenizer alone.
fn with_pad(name: &str, in_table: bool) -> tempfile::TempDir {
    let folder = resized(name, usize::from(in_table), 0.3);
    add_token(folder.path(), 400, "[PAD]");
    folder
}

/// Goal: a token that only one of the twins has, or no table at all, is an error of the lines that have it;
/// all others are scored, also with the ids of another pair.
#[test]
fn a_token_too_many_does_no_harm_where_it_does_not_turn_up() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("pairs.jsonl");
    let line = |prompt: &str, response: &str| {
        format!("{{\"prompt\":\"{prompt}\",\"response\":\"{response}\"}}\n")
    };
    let text =
        [line("The film", " is"), line("The film", " is[PAD]"), line("[PAD]", " is")].concat();
    std::fs::write(&input, text).unwrap();
    let input = input.to_str().unwrap();
    let (larger, beyond, plain) =
        (with_pad("gpt2_tuned", true), with_pad("gpt2_tuned", false), model("gpt2"));
    for (tuned, lacks) in [(&larger, "untuned"), (&beyond, "tuned")] {
        for mode in ["text", "ids"] {
            let second = format!("{},{plain}", model("gpt2_tuned"));
            let tuned = path(tuned);
            let flags = ["score", "--tuned", &tuned, "--untuned", &plain, "--guide", &second];
            let output =
                trimtab(&[&flags[..], &["--guide-tokens", mode, "--input", input]].concat());
            assert_eq!(output.status.code(), Some(2));
            let answers = lines(&String::from_utf8(output.stdout).unwrap());
            assert!(answers[0]["gain"].is_number(), "{}", answers[0]);
            for (answer, line) in [(&answers[1], 2), (&answers[2], 3)] {
                let reason = answer["error"].as_str().unwrap();
                let part = format!(
                    "line {line}: the {lacks} model has no token 400 (\"[PAD]\"): its vocabulary has 400 entries"
                );
                assert!(reason.contains(&part), "{reason}");
            }
        }
    }
    let inspected = stdout(&trimtab(&["inspect".into(), path(&beyond)]));
    assert!(inspected.contains("400 entries, 401 in the tokenizer"), "{inspected}");
}

/// Goal: three models with one tokenizer and tables of three sizes work together, with the base's tokens as
/// they are and by emulated fine-tuning; tokens that the base alone has are never drawn there.
#[test]
fn padded_tables_go_together() {
    let models = [("gpt2", 20), ("gpt2_tuned", 5), ("gpt2", 0)];
    let [base, tuned, untuned] = models.map(|(name, more)| resized(name, more, 0.3));
    let (base, tuned, untuned) = (path(&base), path(&tuned), path(&untuned));
    let models = ["search", "--base", &base, "--tuned", &tuned, "--untuned", &untuned];
    let flags =
        ["--prompt", "The film", "--max-new-tokens", "6", "--json", "--guide-tokens", "ids"];
    for method in [&["--method", "eft"][..], &["-w", "2", "-k", "2", "-l", "3"]] {
        let answer = lines(&stdout(&trimtab(&[&models, &flags, method].concat()))).remove(0);
        assert!(answer["gain"].is_number(), "{answer}");
    }
}

/// Goal: an end of text that a pair cannot score, or cannot follow, is refused before anything is searched:
/// every response that ends would be lost.
#[test]
fn an_end_beyond_a_table_is_refused() {
    let chat = |name: &str| {
        let folder = resized(name, 1, 0.3);
        add_token(folder.path(), 400, "<|im_end|>");
        edit(folder.path(), "tokenizer_config.json", |c| c["eos_token"] = "<|im_end|>".into());
        edit(folder.path(), "config.json", |c| c["eos_token_id"] = 400.into());
        edit(folder.path(), "generation_config.json", |c| c["eos_token_id"] = 400.into());
        folder
    };
    let (base, tuned) = (chat("gpt2"), chat("gpt2_tuned"));
    let (base, chat_tuned) = (path(&base), path(&tuned));
    let (plain, plain_tuned) = (model("gpt2"), model("gpt2_tuned"));
    let run = |base: &str, tuned: &str, untuned: &str, flags: &[&str]| {
        let models = ["search", "--base", base, "--tuned", tuned, "--untuned", untuned];
        let search = ["--prompt", "The film", "--max-new-tokens", "4"];
        trimtab(&[&models[..], &search, flags].concat())
    };
    let beyond =
        "token 400 (\"<|im_end|>\"), with which responses end, is beyond the 400 entries of ";
    for (base, tuned, flags) in [
        (&base, &chat_tuned, &["--guide-tokens", "ids"][..]),
        (&plain, &chat_tuned, &["--guide-tokens", "text"]),
        (&base, &plain_tuned, &["--guide-tokens", "ids"]),
        (&base, &plain_tuned, &["--method", "eft"]),
    ] {
        let output = run(base, tuned, &plain, flags);
        assert_refused(&output, beyond);
        assert!(output.stdout.is_empty());
    }
    // The guide has an end of its own in the text.
    stdout(&run(&base, &plain_tuned, &plain, &[]));
    // All of them have it.
    stdout(&run(&base, &chat_tuned, &base, &["--guide-tokens", "ids"]));
}
