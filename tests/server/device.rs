//! A device that fails, played by a base model that does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use trimtab::error::{Error, Result};
use trimtab::proposer::{Draft, Lifetime, Prompt, Proposer, Reader};
use trimtab::scheduler::Scheduler;
use trimtab::search::{Method, Shape};
use trimtab::server::{Defaults, HttpOptions, Limits, Options, Origins};

use super::toy::{Judge, Pick, Script, settings};
use super::*;

/// Writes what its script says, until a prompt tells it to fail, or is held up.
struct Failing(Script, Hold);

/// Holds up the threads that come to it.
#[derive(Clone, Default)]
struct Hold {
    off: Arc<AtomicBool>,
    /// A thread is held up.
    reached: Arc<AtomicBool>,
}

impl Hold {
    fn pass(&self) {
        while !self.off.load(Ordering::SeqCst) {
            self.reached.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_until_reached(&self) {
        let started = Instant::now();
        while !self.reached.load(Ordering::SeqCst) {
            assert!(started.elapsed() < Duration::from_secs(60), "nothing comes here");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Proposer for Failing {
    type Prompt = String;
    type State = String;

    fn reader(&self) -> Reader<String> {
        let (read, hold) = (self.0.reader(), self.1.clone());
        Arc::new(move |prompt, life| {
            if matches!(prompt, Prompt::Text(text) if text.starts_with("Slow to read")) {
                hold.pass();
            }
            read(prompt, life)
        })
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
        if told("hang") {
            self.1.pass();
        }
        if told("for now") {
            return Err(Error::OutOfPages { needed: 1, free: 0 });
        }
        self.0.extend(drafts)
    }
}

/// A server in this process, and what it ends with.
fn start() -> (SocketAddr, JoinHandle<Result<(), String>>) {
    start_with(Hold::default())
}

fn start_with(hold: Hold) -> (SocketAddr, JoinHandle<Result<(), String>>) {
    let http = HttpOptions {
        api_key: None,
        connections: 10,
        connections_per_address: 10,
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
        limits: Limits { body: 100_000, prompt: 50_000, candidates: 16, tokens: 100, answers: 4 },
        queue: 100,
        stall_timeout: std::time::Duration::from_secs(1),
        timeout: Duration::from_secs(60),
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let (server, address) = trimtab::server::Server::http(any, http, options).unwrap();
    let engine = std::thread::spawn(move || {
        let script = Failing(Script::new(20, Pick::Constant(3)), hold);
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

/// Goal: however long it takes to read a long text, and however many of them there are, short requests are
/// answered meanwhile, and so is the long one in the end.
#[test]
fn short_requests_do_not_wait_for_long_texts_to_be_read() {
    let hold = Hold::default();
    let (address, _) = start_with(hold.clone());
    let long = format!("Slow to read {}", "film ".repeat(4000));
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let long = long.clone();
            std::thread::spawn(move || ask(address, &long, false).status)
        })
        .collect();
    hold.wait_until_reached();
    for _ in 0..20 {
        assert_eq!(ask(address, "Good", false).status, 200);
    }
    assert!(waiting.iter().all(|long| !long.is_finished()));
    hold.off.store(true, Ordering::SeqCst);
    assert!(waiting.into_iter().all(|long| long.join().unwrap() == 200));
}

/// Goal: a program that watches the server sees that it hangs, in a step of the models or in a text that is read, and
/// that it has got over it.
#[test]
fn health_says_when_nothing_moves() {
    for prompt in ["hang", "Slow to read"] {
        let hold = Hold::default();
        let (address, _) = start_with(hold.clone());
        let health = || client::send(address, &client::request("GET", "/health", &[], b""));
        let waiting = std::thread::spawn(move || ask(address, prompt, false).status);
        hold.wait_until_reached();
        assert_eq!(health().status, 200, "{prompt}: that soon nothing is amiss");
        let started = Instant::now();
        let unwell = loop {
            let answer = health();
            if answer.status != 200 {
                break answer;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{prompt}: it is well for ever");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!((unwell.status, &unwell.json()["error"]["code"]), (503, &json!("stalled")));
        hold.off.store(true, Ordering::SeqCst);
        assert_eq!(waiting.join().unwrap(), 200);
        assert_eq!(health().status, 200, "{prompt}");
    }
}

/// Goal: a second signal ends the process at once, also where a step of the models never ends.
#[test]
fn a_second_signal_ends_what_hangs() {
    const CHILD: &str = "TRIMTAB_TEST_HANGS";
    if std::env::var_os(CHILD).is_some() {
        let (address, engine) = start_with(Hold::default());
        eprintln!("listening on {address}");
        let _ = engine.join();
        return;
    }
    let this = "device::a_second_signal_ends_what_hangs";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", this, "--nocapture"]).env(CHILD, "1");
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("listening on ")?.parse().ok());
    let server = Server { child, address: address.unwrap(), log: Arc::default() };
    let body = json!({ "prompt": "hang" }).to_string();
    let mut waiting = client::connect(server.address);
    let bytes = client::request("POST", "/v1/completions", &[JSON], body.as_bytes());
    std::io::Write::write_all(&mut waiting, &bytes).unwrap();
    server.wait_until("it hangs", |server| {
        server.metric("trimtab_running_searches") == 1.0
            || server.metric("trimtab_queue_searches") == 1.0
    });
    server.signal("-TERM");
    server.wait_until("it drains", |server| server.get("/ready").status == 503);
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}
