//! A device that fails, played by a base model that does.

use std::thread::JoinHandle;

use trimtab::error::{Error, Result};
use trimtab::proposer::{Draft, Proposer, Reader};
use trimtab::scheduler::Scheduler;
use trimtab::search::{Method, Shape};
use trimtab::server::{Defaults, HttpOptions, Limits, Options, Origins};

use super::toy::{Judge, Pick, Script, settings};
use super::*;

/// Writes what its script says, until a prompt tells it to fail.
struct Failing(Script);

impl Proposer for Failing {
    type Prompt = String;
    type State = String;

    fn reader(&self) -> Reader<String> {
        self.0.reader()
    }

    fn pages_needed(&self, prompt: &String, life: &Lifetime) -> Vec<usize> {
        self.0.pages_needed(prompt, life)
    }

    fn page_capacity(&self) -> Vec<usize> {
        self.0.page_capacity()
    }

    fn open(&mut self, prompts: &[&String]) -> Result<Vec<String>> {
        self.0.open(prompts)
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, String>]) -> Result<()> {
        let told = |what: &str| drafts.iter().any(|draft| draft.state.contains(what));
        if told("for good") {
            let (what, reason) = ("matmul".into(), "an illegal memory access".into());
            return Err(Error::Cuda { what, reason });
        }
        if told("for now") {
            return Err(Error::OutOfPages { needed: 1, free: 0 });
        }
        self.0.extend(drafts)
    }
}

/// A server in this process, and what it ends with.
fn start() -> (SocketAddr, JoinHandle<Result<(), String>>) {
    let http = HttpOptions {
        api_key: None,
        connections: 10,
        origins: Origins::default(),
        hosts: None,
        log: false,
    };
    let options = Options {
        model: "script".into(),
        defaults: Defaults {
            method: Method::Cbs,
            shape: Shape::default(),
            settings: settings(2, 2, Some(3), 9, 1),
            seed: Some(1),
            guided: true,
            tells_tokens: true,
        },
        limits: Limits { body: 1000, prompt: 100, candidates: 16, tokens: 100, answers: 4 },
        queue: 100,
        timeout: Duration::from_secs(60),
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let (server, address) = trimtab::server::Server::http(any, http, options).unwrap();
    let engine = std::thread::spawn(move || {
        let script = Failing(Script::new(20, Pick::Constant(3)));
        let scheduler = Scheduler::new(script, Judge::default(), 4);
        server.run(scheduler, || {}).map_err(|error| error.to_string())
    });
    while client::send(address, &client::request("GET", "/ready", &[], b"")).status != 200 {
        std::thread::sleep(Duration::from_millis(5));
    }
    (address, engine)
}

fn ask(address: SocketAddr, prompt: &str, stream: bool) -> Answer {
    let body = json!({ "prompt": prompt, "stream": stream }).to_string();
    client::send(address, &client::request("POST", "/v1/completions", &[JSON], body.as_bytes()))
}

/// Goal: after an error that passes, the server answers as before; after one of CUDA's, which does
/// not, it tells all who are inside and ends with that error, instead of failing for ever.
#[test]
fn a_device_that_fails_for_good_ends_the_server() {
    let (address, engine) = start();
    assert_eq!(ask(address, "Good", false).status, 200);
    assert_eq!(ask(address, "Fail for now", false).status, 500);
    let before = ask(address, "Good", false);
    assert_eq!(
        (before.status, before.json()["choices"][0]["text"].clone()),
        (200, json!("ccccccccc"))
    );

    let streamed = ask(address, "Fail for now", true).text();
    assert!(streamed.contains("cache pages") && !streamed.contains("[DONE]"), "{streamed}");
    let last = ask(address, "Fail for good", false);
    assert_eq!((last.status, &last.json()["error"]["code"]), (503, &json!("device_failed")));
    assert!(last.message().contains("CUDA failed at matmul: an illegal memory access"));
    assert_eq!(last.header("retry-after"), Some("1"));
    let ended = engine.join().unwrap();
    assert_eq!(ended, Err("CUDA failed at matmul: an illegal memory access".into()));
    assert!(std::net::TcpStream::connect(address).is_err(), "it listens on");
}
