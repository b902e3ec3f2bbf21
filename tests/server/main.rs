//! The server from outside: a real process on a free port, with the demo's models.
#![allow(clippy::unwrap_used)]

mod answers;
mod client;
mod device;
mod load;
mod outside;
mod refusals;
mod stdio;
#[path = "../toy/mod.rs"]
mod toy;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client::Answer;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// One of the demo's models.
fn model(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    folder.to_str().unwrap().to_owned()
}

/// Flags for all of the demo's models, and little memory.
fn models() -> Vec<String> {
    let flags = ["--base", "--tuned", "--untuned"].into_iter();
    let folders = ["base", "tuned", "untuned"].map(model);
    let pairs = flags.zip(folders).flat_map(|(flag, folder)| [flag.to_owned(), folder]);
    pairs.chain(["--kv-memory".into(), "200M".into()]).collect()
}

fn trimtab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trimtab"))
}

/// A server process.
struct Server {
    child: Child,
    address: SocketAddr,
    /// What it says on stderr.
    log: Arc<Mutex<String>>,
}

impl Server {
    /// The demo's models with further flags.
    fn start(flags: &[&str]) -> Self {
        Self::start_with(&models(), flags)
    }

    /// Waits until the server is ready.
    fn start_with(models: &[String], flags: &[&str]) -> Self {
        let mut command = trimtab();
        command.arg("serve").args(models).args(["--port", "0"]).args(flags);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address = None;
        loop {
            let line = lines.next().expect("the server ended").unwrap();
            if let Some(url) = line.strip_prefix("trimtab: listening on http://") {
                address = Some(url.parse().unwrap());
            }
            if line.starts_with("trimtab: ready") {
                break;
            }
        }
        let log = Arc::new(Mutex::new(String::new()));
        std::thread::spawn({
            let log = log.clone();
            move || {
                lines.map_while(Result::ok).for_each(|line| *log.lock().unwrap() += &(line + "\n"))
            }
        });
        Self { child, address: address.unwrap(), log }
    }

    fn get(&self, path: &str) -> Answer {
        client::send(self.address, &client::request("GET", path, &[], b""))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        client::send(self.address, &client::request("POST", path, &[JSON], body))
    }

    /// A completion that must succeed.
    fn complete(&self, body: &Value) -> Value {
        let answer = self.post("/v1/completions", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// A sample of the metrics.
    fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{sample} is not in {text}")).parse().unwrap()
    }

    /// Free pages of base and guide.
    fn pages_free(&self) -> [f64; 2] {
        ["base-0", "guide-0"]
            .map(|pool| self.metric(&format!("trimtab_pages_free{{pool=\"{pool}\"}}")))
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for the process to end by itself.
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        (status.code(), self.log.lock().unwrap().clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A search that takes a while: a second or so. Chunks of one token would be run once a beam.
fn long_search(prompt: &str) -> Value {
    json!({
        "prompt": prompt,
        "seed": 1,
        "max_tokens": 120,
        "search": { "method": "cbs", "beam_width": 16, "successors": 16, "chunk_len": 3 },
        // An answer that ends early would make it a short one.
        "temperature": 3.0,
        "top_k": 0,
    })
}

/// Copies of the demo's models that know how to chat, each in its own words.
fn chat_models() -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut flags = Vec::new();
    for name in ["base", "tuned", "untuned"] {
        let copy: PathBuf = folder.path().join(name);
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(model(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
        let opening = if name == "base" { "" } else { "Review: " };
        let template =
            format!("{opening}{{{{ messages | map(attribute='content') | join(' ') }}}}");
        std::fs::write(copy.join("chat_template.jinja"), template).unwrap();
        flags.extend([format!("--{name}"), copy.to_str().unwrap().to_owned()]);
    }
    flags.extend(["--kv-memory".to_owned(), "200M".to_owned()]);
    (folder, flags)
}
