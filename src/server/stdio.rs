//! JSON lines on standard input and output, for programs that start trimtab as a child.
//!
//! A line `{"id": …, "path": "/v1/completions", "body": {…}}` is answered by
//! `{"id": …, "status": 200, "body": {…}}`, in whatever order answers are ready. A stream's events
//! come as `{"id": …, "event": {…}}`, and `{"id": …, "status": 200}` ends it. A line
//! `{"id": …, "cancel": ID}` cancels. Whatever is wrong with a line is said in a line: with its id
//! if it is an object that has one, and with its number.

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::api::{self, Api, takes_body};
use super::fields::{Fields, Object};
use super::log::{Tally, say};
use super::refusal::Refusal;
use super::wire::read;
use crate::json::{Json, half_character};

/// Room for what stands around a body in its line.
const ENVELOPE: usize = 4096;
/// Lines that may wait for a slow reader.
const BUFFER: usize = 64;

#[derive(Deserialize)]
struct Line {
    id: Json,
    path: Option<String>,
    body: Option<Box<RawValue>>,
    cancel: Option<Json>,
}

impl Fields for Line {}

/// A line of the output.
#[derive(Default, Serialize)]
struct Reply {
    id: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Value>,
    /// The number of a line that is not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
}

impl Reply {
    fn ok(id: &Json, body: Option<Value>) -> Self {
        Self { id: id.clone(), status: Some(200), body, ..Self::default() }
    }

    fn event(id: &Json, event: Value) -> Self {
        Self { id: id.clone(), event: Some(event), ..Self::default() }
    }

    fn refused(id: &Json, refusal: &Refusal) -> Self {
        let (status, body) = (Some(refusal.status), Some(refusal.body()));
        Self { id: id.clone(), status, body, ..Self::default() }
    }
}

/// Requests that are being answered, by the names of their ids; dropping a sender cancels nothing,
/// sending does.
type Open = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

/// Answers lines until the input ends, and then the last ones.
pub fn serve(outstanding: usize, api: Arc<Api>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (lines, output) = mpsc::channel(BUFFER);
    let writer = std::thread::spawn(move || write(output));
    let limit = api.options().limits.body + ENVELOPE;
    let (sender, input) = mpsc::channel(1);
    // Not joined: it may be waiting for input that nobody wants any more.
    std::thread::spawn(move || read_lines(limit, &sender));
    runtime.block_on(answer(api, outstanding, input, lines));
    drop(runtime);
    let _ = writer.join();
}

/// Reads lines, each of at most `limit` bytes, with their numbers.
fn read_lines(limit: usize, lines: &mpsc::Sender<(usize, Result<Vec<u8>, Refusal>)>) {
    let mut input = std::io::stdin().lock();
    for number in 1.. {
        let mut line = Vec::new();
        match input.by_ref().take(limit as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                say(format_args!("cannot read standard input: {error}"));
                return;
            }
        }
        let line = if line.last() != Some(&b'\n') && line.len() > limit {
            let _ = input.skip_until(b'\n');
            Err(Refusal::too_large("the line", limit))
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            Ok(line)
        };
        if lines.blocking_send((number, line)).is_err() {
            return;
        }
    }
}

fn write(mut lines: mpsc::Receiver<Reply>) {
    let mut output = std::io::stdout().lock();
    while let Some(line) = lines.blocking_recv() {
        let line = serde_json::to_string(&line).expect("plain data becomes JSON");
        let written = writeln!(output, "{line}").and_then(|()| output.flush());
        if written.is_err() {
            // Nobody reads: dropping the receiver ends all who would write.
            return;
        }
    }
}

async fn answer(
    api: Arc<Api>,
    outstanding: usize,
    mut input: mpsc::Receiver<(usize, Result<Vec<u8>, Refusal>)>,
    output: mpsc::Sender<Reply>,
) {
    api.gate.opened().await;
    let open = Open::default();
    let permits = Arc::new(Semaphore::new(outstanding));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let (number, line) = tokio::select! {
            line = input.recv() => match line {
                Some(line) => line,
                None => break,
            },
            () = output.closed() => return,
            // Whoever started this process sees which lines were not answered.
            () = api.gate.failed() => break,
        };
        while tasks.try_join_next().is_some() {}
        let (line, bytes) = match line {
            Ok(bytes) => (read("the line", &bytes), bytes),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        let (id, request) = match line.map(|Object(line)| line) {
            Ok(Line { id, .. }) if half_character(id.text()).is_some() => {
                let reason = "holds half of a character (a lone surrogate), which is no text";
                (Json::default(), Err(Refusal::field("id", reason)))
            }
            Ok(Line { id, cancel: Some(other), path: None, body: None }) => {
                let cancel = lock(&open).remove(&name(&other));
                let cancelled = cancel.is_some_and(|cancel| cancel.send(()).is_ok());
                let body = json!({ "cancelled": cancelled });
                let _ = output.send(Reply::ok(&id, Some(body))).await;
                continue;
            }
            Ok(Line { id, cancel: Some(_), .. }) => {
                (id, Err(Refusal::field("cancel", "must not stand beside `path` and `body`")))
            }
            Ok(Line { id, path: None, .. }) => (id, Err(Refusal::field("path", "is missing"))),
            Ok(Line { id, path: Some(path), body, .. }) => (id, Ok((path, body))),
            Err(refusal) => (id_of(&bytes), Err(refusal)),
        };
        let (path, body) = match request {
            Ok(request) => request,
            Err(refusal) => {
                let reply = Reply { line: Some(number), ..Reply::refused(&id, &refusal) };
                let _ = output.send(reply).await;
                continue;
            }
        };
        let key = name(&id);
        if lock(&open).contains_key(&key) {
            let refusal = Refusal::field("id", "is that of a request that is being answered");
            // Its number tells it from that request's own answer.
            let reply = Reply { line: Some(number), ..Reply::refused(&id, &refusal) };
            let _ = output.send(reply).await;
            continue;
        }
        let (cancel, cancelled) = oneshot::channel();
        lock(&open).insert(key.clone(), cancel);
        let permit = permits.clone().acquire_owned().await;
        let (api, output, open) = (api.clone(), output.clone(), open.clone());
        tasks.spawn(async move {
            let work = request_of(&api, &id, &path, body.as_deref(), &output);
            let last = tokio::select! {
                last = work => last,
                Ok(()) = cancelled => Reply::refused(&id, &Refusal::cancelled()),
                () = output.closed() => return,
            };
            lock(&open).remove(&key);
            let _ = output.send(last).await;
            drop(permit);
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// The id of a line that has one, whatever else is wrong with it.
fn id_of(line: &[u8]) -> Json {
    #[derive(Deserialize)]
    struct Named {
        id: Json,
    }
    let is_object = line.trim_ascii_start().starts_with(b"{");
    let named = is_object.then(|| serde_json::from_slice(line).ok()).flatten();
    let id = named.map(|Named { id }| id).filter(|id| half_character(id.text()).is_none());
    id.unwrap_or_default()
}

/// What an id goes by: a string by what it says, however that is escaped.
fn name(id: &Json) -> String {
    id.string().map_or_else(|| id.to_string(), |text| json!(text).to_string())
}

fn lock(open: &Open) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request; returns the last line about it.
async fn request_of(
    api: &Api,
    id: &Json,
    path: &str,
    body: Option<&RawValue>,
    output: &mpsc::Sender<Reply>,
) -> Reply {
    let reply = match body {
        Some(body) if takes_body(path) => {
            api.post(path, body.get().as_bytes(), &Tally::default()).await
        }
        None if takes_body(path) => Err(Refusal::field("body", "is missing")),
        None => api.get(path),
        Some(_) => api.get(path).and_then(|_| {
            Err(Refusal::field("body", format!("must be left out: {path} takes none")))
        }),
    };
    match reply {
        Ok(api::Reply::Json(body)) => Reply::ok(id, Some(body)),
        Ok(api::Reply::Text(_, text)) => Reply::ok(id, Some(text.into())),
        Ok(api::Reply::Stream(mut events)) => {
            while let Some(event) = events.recv().await {
                match event {
                    Ok(event) => _ = output.send(Reply::event(id, event)).await,
                    Err(refusal) => return Reply::refused(id, &refusal),
                }
            }
            Reply::ok(id, None)
        }
        Err(refusal) => Reply::refused(id, &refusal),
    }
}
