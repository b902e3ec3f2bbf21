//! Against a real server: trimtab's own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn model(name: &str) -> String {
    format!("{}/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// `trimtab serve` with the demo's base model and no guide; ends when it is dropped.
struct Serve {
    child: Child,
    url: String,
}

impl Serve {
    fn new() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_trimtab"))
            .args(["serve", "--base", &model("base"), "--method", "sample", "--port", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut url = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(address) = line.strip_prefix("trimtab: listening on ") {
                url = format!("{address}/v1");
            }
            if line.starts_with("trimtab: ready") {
                break;
            }
        }
        // Whatever it says from now on is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    fn search(&self, more: &[&str]) -> Vec<Value> {
        let remote = ["--base-url", &self.url, "--base-model", "base", "--json"];
        search(&[&remote, more].concat())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn search(flags: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["search", "--tuned", &model("tuned"), "--untuned", &model("untuned")])
        .args(["--max-new-tokens", "20"])
        .args(flags)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Goal: a base model that trimtab serves writes what it writes here, and is guided as it is here:
/// the same greedy answer with the same gain, searches that repeat themselves alone and together,
/// and higher gains than samples have.
#[test]
fn trimtabs_own_server_is_a_base_model() {
    let server = Serve::new();
    let greedy = ["--prompt", "The film", "--method", "sample", "--temperature", "0"];
    let (there, here) = (
        server.search(&greedy),
        search(
            &[&["--base", &model("base"), "--json", "--guide-tokens", "text"], &greedy[..]]
                .concat(),
        ),
    );
    assert_eq!(there[0]["response"], here[0]["response"]);
    assert_eq!(there[0]["gain"], here[0]["gain"]);
    assert_eq!(there[0]["tokens"], here[0]["tokens"]);

    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.jsonl");
    let lines: String = ["The film", "A story", "This is", "I think", "Nothing", "The acting"]
        .map(|prompt| format!("{{\"prompt\":\"{prompt}\"}}\n"))
        .concat();
    std::fs::write(&prompts, lines).unwrap();
    let prompts = ["--prompts", prompts.to_str().unwrap()];
    let cbs = ["-w", "2", "-k", "4", "-l", "5"];
    let searched = server.search(&[&prompts[..], &cbs].concat());
    let alone = server.search(&[&prompts[..], &cbs, &["--concurrency", "1"]].concat());
    assert_eq!(searched, alone);
    let sampled = server.search(&[&prompts[..], &["--method", "sample"]].concat());
    let gain = |answers: &[Value]| answers.iter().map(|a| a["gain"].as_f64().unwrap()).sum::<f64>();
    assert!(gain(&searched) > gain(&sampled), "{} {}", gain(&searched), gain(&sampled));
}

/// Goal: a request for token ids is refused where the base model is on another server, which tells none.
#[test]
fn token_ids_are_refused_where_the_base_tells_none() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["stdio", "--base-url", "http://127.0.0.1:9/v1", "--base-model", "m"])
        .args(["--tuned", &model("tuned"), "--untuned", &model("untuned")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = "{\"id\":1,\"path\":\"/v1/completions\",\"body\":{\"prompt\":\"x\",\
                \"search\":{\"token_ids\":true}}}\n";
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = &answer["body"]["error"];
    assert_eq!((&answer["status"], &error["param"]), (&400.into(), &"search.token_ids".into()));
    assert!(error["message"].as_str().unwrap().contains("does not tell its tokens"), "{error}");
}
