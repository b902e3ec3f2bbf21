//! A completions server for tests: it writes by a script, keeps what it was asked, and fails on
//! purpose.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
    /// How often the very same body has come before.
    pub before: usize,
}

impl Asked {
    pub fn prompt(&self) -> &str {
        self.body["prompt"].as_str().unwrap()
    }

    pub fn number(&self, field: &str) -> usize {
        self.body[field].as_u64().unwrap() as usize
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    Json(u16, Value),
    /// Status, further headers, body, as they are.
    Raw(u16, &'static str, String),
    /// Refused until so many seconds from now, written as a date.
    Until(u64),
    /// An answer that comes too late.
    Late(Duration, Value),
    /// The connection is cut before the answer.
    Cut,
    /// The connection is cut within the answer.
    CutWithin(Value),
}

/// Serves until it is dropped.
pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    most: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Server {
    /// A server that does what `reply` says.
    pub fn new(reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (most, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = Arc::new(Shared {
            reply: Box::new(reply),
            asked: asked.clone(),
            before: Mutex::default(),
            now: AtomicUsize::new(0),
            most: most.clone(),
        });
        let stop = stopped.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (stream, shared) = (stream.unwrap(), shared.clone());
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { url, asked, most, stopped }
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests at the same time, at most.
    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // The listener wakes up and sees it.
        let address = self.url.trim_start_matches("http://").trim_end_matches("/v1");
        let _ = TcpStream::connect(address);
    }
}

struct Shared {
    reply: Box<dyn Fn(&Asked) -> Reply + Send + Sync>,
    asked: Arc<Mutex<Vec<Asked>>>,
    before: Mutex<HashMap<String, usize>>,
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = self.read(&mut reader) {
            self.asked.lock().unwrap().push(asked.clone());
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let reply = (self.reply)(&asked);
            let stays = send(reader.get_mut(), reply);
            self.now.fetch_sub(1, Ordering::SeqCst);
            if !stays {
                return;
            }
        }
    }

    fn read(&self, reader: &mut BufReader<TcpStream>) -> Option<Asked> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let (mut length, mut authorization) = (0, None);
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let text = String::from_utf8(body).unwrap();
        let mut before = self.before.lock().unwrap();
        let count = before.entry(text.clone()).or_insert(0);
        *count += 1;
        let body = serde_json::from_str(&text).unwrap();
        Some(Asked { path, authorization, body, before: *count - 1 })
    }
}

/// Whether the connection stays.
fn send(stream: &mut TcpStream, reply: Reply) -> bool {
    let head = |status: u16, more: &str, length: usize| {
        format!("HTTP/1.1 {status} Said\r\n{more}content-length: {length}\r\n\r\n")
    };
    const JSON: &str = "content-type: application/json\r\n";
    let (text, stays) = match reply {
        Reply::Json(status, body) => {
            let body = body.to_string();
            (head(status, JSON, body.len()) + &body, true)
        }
        Reply::Raw(status, more, body) => (head(status, more, body.len()) + &body, true),
        Reply::Until(seconds) => {
            let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds));
            (head(429, &format!("retry-after: {date}\r\n"), 0), true)
        }
        Reply::Late(delay, body) => {
            std::thread::sleep(delay);
            let body = body.to_string();
            (head(200, JSON, body.len()) + &body, true)
        }
        Reply::Cut => (String::new(), false),
        Reply::CutWithin(body) => {
            let body = body.to_string();
            (head(200, JSON, body.len()) + &body[..body.len() / 2], false)
        }
    };
    stream.write_all(text.as_bytes()).is_ok() && stream.flush().is_ok() && stays
}

/// The script: `tokens` syllables that depend on everything that continues a text, one of seven
/// texts ending earlier.
pub fn written(prompt: &str, seed: u64, index: usize, tokens: usize) -> (String, bool) {
    let mut state = prompt.bytes().fold(seed ^ 0x9E37_79B9, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut draw = |below: u64| {
        state = (state ^ index as u64).wrapping_mul(0xD129_0D3B_3B6E_2B25).wrapping_add(1);
        (state >> 33) % below
    };
    let syllables = [" so", "le", "mi", " ré", "do", " la", "ti", "你"];
    let ended = draw(7) == 0;
    let count = if ended { draw(tokens as u64) } else { tokens as u64 };
    ((0..count).map(|_| syllables[draw(8) as usize]).collect(), ended)
}

/// The answer by the script, with so many choices.
pub fn completion(asked: &Asked, choices: usize) -> Value {
    let prompt = match &asked.body["prompt"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let (seed, tokens) = (asked.body["seed"].as_u64().unwrap(), asked.number("max_tokens"));
    let choices: Vec<Value> = (0..choices)
        .map(|index| {
            let (text, ended) = written(&prompt, seed, index, tokens);
            let reason = if ended { "stop" } else { "length" };
            json!({"index": index, "text": text, "finish_reason": reason, "logprobs": null})
        })
        // In any order: the index counts.
        .rev()
        .collect();
    json!({"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": choices})
}

/// A server that answers by the script.
pub fn scripted() -> Server {
    Server::new(|asked| Reply::Json(200, completion(asked, asked.number("n"))))
}
