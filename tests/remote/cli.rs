//! The program with a base model elsewhere.

use std::process::{Command, Output};

use serde_json::Value;
use trimtab::proposer::ApiKey;

use super::*;

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn trimtab(url: &str, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["search", "--base-url", url, "--base-model", "m"])
        .args(["--tuned", &golden("llama_tuned"), "--untuned", &golden("llama")])
        .args(flags)
        .env("TRIMTAB_TEST_KEY", "sk-very-secret")
        .env("TRIMTAB_TEST_EMPTY", "")
        .output()
        .unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Goal: a search over a server is guided by the pair here: its gain is what `score` gives, it is
/// above that of the server alone, and its seed names it.
#[test]
fn a_server_is_guided_by_a_pair_here() {
    let server = scripted();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let prompts: String =
        ["The film", "A quiet", "Was it"].map(|p| format!("{{\"prompt\":\"{p}\"}}\n")).concat();
    std::fs::write(path("prompts"), prompts).unwrap();
    let flags = |more: &[&str]| {
        let prompts = path("prompts");
        let all = [&["--prompts", &prompts, "--max-new-tokens", "12"], more].concat();
        lines(&trimtab(&server.url, &all))
    };
    let searched = flags(&["-w", "2", "-k", "4", "-l", "4"]);
    assert_eq!(searched, flags(&["-w", "2", "-k", "4", "-l", "4", "--concurrency", "1"]));
    let sampled = flags(&["--method", "sample"]);
    let gain = |answers: &[Value]| answers.iter().map(|a| a["gain"].as_f64().unwrap()).sum::<f64>();
    assert!(gain(&searched) > gain(&sampled), "{} {}", gain(&searched), gain(&sampled));

    let pairs: String = searched
        .iter()
        .map(|answer| {
            let eos = answer["finish_reason"] == "stop";
            let (prompt, response) = (&answer["prompt"], &answer["response"]);
            format!("{}\n", serde_json::json!({"prompt": prompt, "response": response, "eos": eos}))
        })
        .collect();
    std::fs::write(path("pairs"), pairs).unwrap();
    let scored = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["score", "--tuned", &golden("llama_tuned"), "--untuned", &golden("llama")])
        .args(["--input", &path("pairs")])
        .output()
        .unwrap();
    for (score, answer) in lines(&scored).iter().zip(&searched) {
        assert_eq!(score["gain"], answer["gain"]);
    }
}

/// Goal: without a guide nothing is needed here but the program.
#[test]
fn a_server_can_be_sampled_without_a_guide() {
    let server = scripted();
    let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["search", "--base-url", &server.url, "--base-model", "m", "--method", "sample"])
        .args(["--prompt", "Why?", "--max-new-tokens", "5", "--json"])
        .output()
        .unwrap();
    assert_eq!(lines(&output)[0]["gain"], Value::Null);
    assert_eq!(server.asked().len(), 1);
}

/// Goal: the key reaches the server and nobody else: no answer, trace, settings file or message,
/// not even when the server says it.
#[test]
fn the_key_is_shown_nowhere() {
    let server = Server::new(|asked| {
        assert_eq!(asked.authorization.as_deref(), Some("Bearer sk-very-secret"));
        if asked.prompt().contains("Bad") {
            let said = format!("wrong key {}", asked.authorization.as_deref().unwrap());
            return Reply::Json(401, serde_json::json!({"error": {"message": said}}));
        }
        Reply::Json(200, completion(asked, asked.number("n")))
    });
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("prompts"), "{\"prompt\":\"Why?\"}\n{\"prompt\":\"Bad\"}\n").unwrap();
    let output = trimtab(
        &server.url,
        &[
            "--api-key-env",
            "TRIMTAB_TEST_KEY",
            "--prompts",
            &path("prompts"),
            "--output",
            &path("out"),
            "--trace",
            &path("trace"),
            "--max-new-tokens",
            "4",
        ],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong key Bearer …"));
    let mut texts = vec![output.stdout, output.stderr];
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        texts.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    assert_eq!(texts.len(), 2 + 4);
    for text in texts {
        assert!(!String::from_utf8_lossy(&text).contains("sk-very-secret"));
    }
}

/// Goal: nor does the program's own debugging output show it.
#[test]
fn a_key_is_not_debugged() {
    let key = ApiKey::from_env("--api-key-env", "PATH").unwrap();
    let server = scripted();
    let shown = format!("{:?}", Endpoint { key: Some(key), ..endpoint(&server) });
    assert!(
        shown.contains(&server.url) && !shown.contains(&std::env::var("PATH").unwrap()),
        "{shown}"
    );
}

/// Goal: --resume knows the server and the model by name.
#[test]
fn another_server_is_another_run() {
    let server = scripted();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("prompts"), "{\"prompt\":\"Why?\"}\n").unwrap();
    let flags = ["--prompts", &path("prompts"), "--output", &path("out"), "--max-new-tokens", "4"];
    lines(&trimtab(&server.url, &flags));
    let other = scripted();
    let output = trimtab(&other.url, &[&flags[..], &["--resume"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(errors.contains("it was made with base ="), "{errors}");
    assert!(trimtab(&server.url, &[&flags[..], &["--resume"]].concat()).status.success());
}

/// Goal: flags that cannot work are refused by name, before anything is asked.
#[test]
fn flags_that_cannot_work_are_refused() {
    let server = scripted();
    let llama3 = golden("llama3");
    for (url, flags, part) in [
        (server.url.as_str(), &["--method", "eft"][..], "--method eft shifts"),
        (&server.url, &["--compat", "reference"], "--compat reference needs"),
        (&server.url, &["--guide-tokens", "ids"], "--guide-tokens must be text"),
        (&server.url, &["--chat"], "--chat with --base-url needs --base-tokenizer"),
        (&server.url, &["--base-prompt", "ids"], "--base-prompt ids needs --base-tokenizer"),
        (&server.url, &["--base-tokenizer", "nowhere"], "nowhere"),
        (&server.url, &["--base-timeout", "0"], "--base-timeout must be"),
        (&server.url, &["--base-choices", "0"], "--base-choices must be"),
        (&server.url, &["--base-requests", "0"], "--base-requests must be"),
        (&server.url, &["--base-requests", "99999"], "--base-requests must be"),
        (&server.url, &["--api-key-env", "TRIMTAB_NO_SUCH"], "TRIMTAB_NO_SUCH, which is not set"),
        (&server.url, &["--api-key-env", "TRIMTAB_TEST_EMPTY"], "which is empty"),
        (&server.url, &["--base", &llama3], "cannot be used with"),
        ("127.0.0.1:8000/v1", &[], "--base-url must begin with http"),
        ("ftp://127.0.0.1/v1", &[], "--base-url must begin with http"),
        ("http://", &[], "--base-url must begin with http"),
        ("http:///v1", &[], "--base-url must be an address"),
        ("http://me:secret@127.0.0.1/v1", &[], "--base-url must not hold a password"),
        ("http://127.0.0.1/v1?key=1", &[], "--base-url must be an address"),
        ("http://127.0.0.1/v1/completions", &[], "without /completions"),
        ("http://127.0.0.1:99999/v1", &[], "--base-url must be an address"),
    ] {
        let output = trimtab(url, &[&["--prompt", "x"], flags].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
    assert!(server.asked().is_empty());
    let alone = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["search", "--prompt", "x", "--method", "sample"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&alone.stderr)
            .contains("--base or --base-url and --base-model are needed")
    );
}

/// Goal: whoever waits for a server that does not answer is told so, once, and not only at the end.
#[test]
fn trouble_is_told_while_it_lasts() {
    let server = scripted();
    let url = server.url.clone();
    drop(server);
    let output = trimtab(&url, &["--prompt", "x", "--base-retries", "2"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert_eq!(errors.matches("no answer").count(), 2, "{errors}");
    assert_eq!(errors.matches("it will be asked again").count(), 1, "{errors}");
    assert!(errors.contains("(asked 3 times)"), "{errors}");
}

/// Goal: whoever does not read what is said on stderr has the error all the same, and does not wait for ever.
#[test]
fn nobody_has_to_read_what_is_said() {
    let server = scripted();
    let url = server.url.clone();
    drop(server);
    let (reader, stderr) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["search", "--base-url", &url, "--base-model", "m", "--base-retries", "1"])
        .args(["--method", "sample", "--prompt", "x", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it waits for ever");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(2) && said.contains("(asked 2 times)"), "{said}");
}
