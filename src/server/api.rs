//! Requests to answers, whatever they come and go by.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::answer::{self, Frame, Usage};
use super::desk::Handle;
use super::engine::{Accepted, Event, Job, Rejected};
use super::gate::{Gate, Pass};
use super::log::Tally;
use super::metrics::Metrics;
use super::refusal::Refusal;
use super::request::{Defaults, Generation, Limits, Scores};
use crate::search::Outcome;

/// How a server answers.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model's name.
    pub model: String,
    /// What a request gets that does not say otherwise.
    pub defaults: Defaults,
    /// What it may ask for.
    pub limits: Limits,
    /// W·K of all searches that may wait together.
    pub queue: usize,
    /// How long a request may take.
    pub timeout: Duration,
    /// How long a thread may be at one piece of work before the server calls itself unwell.
    pub stall_timeout: Duration,
}

/// Answers requests.
pub struct Api {
    engine: Handle,
    options: Options,
    pub(super) metrics: Arc<Metrics>,
    pub(super) gate: Arc<Gate>,
    started: u64,
    /// Names answers, together with `started`.
    answered: AtomicU64,
}

/// An answer.
pub enum Reply {
    /// A JSON object.
    Json(Value),
    /// Something else: its content type, and it.
    Text(&'static str, String),
    /// JSON objects as they come; after an error there are no more.
    Stream(mpsc::Receiver<Result<Value, Refusal>>),
}

/// Events of a stream that may wait for a slow client.
const STREAM_BUFFER: usize = 16;

/// What Prometheus calls its format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a request to `path` has a body.
pub fn takes_body(path: &str) -> bool {
    matches!(path, "/v1/completions" | "/v1/chat/completions" | "/v1/score")
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Api {
    /// An API in front of an engine.
    pub fn new(engine: Handle, options: Options, metrics: Arc<Metrics>) -> Self {
        let (gate, answered) = (Arc::new(Gate::new()), AtomicU64::new(0));
        Self { engine, options, metrics, gate, started: now(), answered }
    }

    /// How it answers.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// A request without a body.
    pub fn get(&self, path: &str) -> Result<Reply, Refusal> {
        let model = || answer::model(&self.options.model, self.started);
        match path {
            "/health" => self.health().map(|()| Reply::Json(json!({ "status": "ok" }))),
            "/ready" => self.gate.enter().map(|_| Reply::Json(json!({ "status": "ready" }))),
            "/metrics" => Ok(Reply::Text(OPEN_METRICS, self.metrics.text())),
            "/v1/models" => Ok(Reply::Json(json!({ "object": "list", "data": [model()] }))),
            _ => match path.strip_prefix("/v1/models/") {
                Some(name) if name == self.options.model => Ok(Reply::Json(model())),
                Some(name) => Err(Refusal::unknown_model(name, &self.options.model)),
                None => Err(Refusal::not_found(path)),
            },
        }
    }

    /// Whether it makes sense to wait for this server.
    fn health(&self) -> Result<(), Refusal> {
        self.gate.health()?;
        let limit = self.options.stall_timeout;
        let stalled = self.gate.watch.longest() > limit;
        if stalled { Err(Refusal::stalled(limit.as_secs())) } else { Ok(()) }
    }

    /// A request with a body; `tally` counts what it is answered with.
    pub async fn post(&self, path: &str, body: &[u8], tally: &Tally) -> Result<Reply, Refusal> {
        match path {
            "/v1/completions" => self.generate(body, false, tally).await,
            "/v1/chat/completions" => self.generate(body, true, tally).await,
            "/v1/score" => self.score(body, tally).await.map(Reply::Json),
            _ => Err(Refusal::not_found(path)),
        }
    }

    async fn generate(&self, body: &[u8], chat: bool, tally: &Tally) -> Result<Reply, Refusal> {
        let pass = self.gate.enter()?;
        let Options { model, defaults, limits, .. } = &self.options;
        let request = Generation::read(body, chat, model, defaults, limits)?;
        let number = self.answered.fetch_add(1, Ordering::Relaxed);
        let number = format!("{:x}-{number:x}", self.started);
        let frame = Frame::new(&request, &number, now(), model, defaults.guided);
        let seeds: Vec<u64> = (0..request.n).map(|index| frame.seed(index)).collect();
        let jobs = request.prompts.into_iter().map(|prompt| Job::Search {
            prompt,
            settings: request.settings.clone(),
            seeds: seeds.clone(),
            watch: request.stream,
            trace: request.trace,
        });
        let source = |_| if chat { "messages".to_owned() } else { "prompt".to_owned() };
        let deadline = self.deadline();
        let accepted = self.submit(jobs.collect(), deadline, source).await?;
        let prompt_tokens = accepted.prompt_tokens.iter().step_by(request.n).copied().sum();
        tally.prompt(prompt_tokens);
        if request.stream {
            let (events, stream) = mpsc::channel(STREAM_BUFFER);
            let stream_of = Stream {
                frame,
                prompt_tokens,
                include_usage: request.include_usage,
                events: events.clone(),
                tally: tally.clone(),
                _pass: pass,
            };
            let timeout = self.timed_out();
            tokio::spawn(async move {
                // Whoever hangs up drops the other end; that ends this, and with it the search.
                let sent = tokio::select! {
                    sent = timeout_at(deadline, stream_of.send(accepted)) => sent,
                    () = events.closed() => return,
                };
                drop(stream_of);
                if let Err(refusal) = sent.unwrap_or(Err(timeout)) {
                    _ = events.send(Err(refusal)).await;
                }
            });
            return Ok(Reply::Stream(stream));
        }
        let outcomes = self.outcomes(accepted, deadline, tally).await?;
        let completion = outcomes.iter().map(|outcome| outcome.response.tokens.len()).sum();
        let usage = Usage { prompt: prompt_tokens, completion };
        Ok(Reply::Json(frame.whole(&outcomes, &usage)))
    }

    async fn score(&self, body: &[u8], tally: &Tally) -> Result<Value, Refusal> {
        let _pass = self.gate.enter()?;
        let Options { model, defaults, limits, .. } = &self.options;
        let Scores { items } = Scores::read(body, model, limits)?;
        if !defaults.guided {
            return Err(Refusal::malformed("this server has no guide that could score"));
        }
        let single = items.len() == 1;
        let source =
            |index| if single { "prompt".into() } else { format!("inputs[{index}].prompt") };
        let jobs = items.into_iter().map(|item| Job::Given {
            prompt: item.prompt,
            response: item.response,
            ended: item.ended,
        });
        let deadline = self.deadline();
        let accepted = self.submit(jobs.collect(), deadline, source).await?;
        let outcomes = self.outcomes(accepted, deadline, tally).await?;
        Ok(answer::scores(model, &outcomes))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.options.timeout
    }

    fn timed_out(&self) -> Refusal {
        Refusal::timeout(self.options.timeout.as_secs())
    }

    /// Hands in a request's jobs; `source` is the field that a job's prompt stood in.
    async fn submit(
        &self,
        jobs: Vec<Job>,
        deadline: Instant,
        source: impl Fn(usize) -> String,
    ) -> Result<Accepted, Refusal> {
        let submitted = timeout_at(deadline, self.engine.submit(jobs)).await;
        match submitted.map_err(|_| self.timed_out())?.ok_or_else(engine_is_gone)? {
            Ok(accepted) => Ok(accepted),
            Err(Rejected::Impossible(index, error)) => {
                Err(Refusal::from_engine(&error, &source(index)))
            }
            Err(Rejected::Broken(error)) => Err(Refusal::from_engine(&error, "")),
            Err(Rejected::QueueFull(seconds)) => Err(Refusal::queue_full(seconds)),
            Err(Rejected::TooMany(candidates, queue)) => {
                let reason = format!(
                    "times beam_width times successors (of all answers together) is {candidates}, \
                     but at most {queue} can wait"
                );
                Err(Refusal::field("n", reason))
            }
        }
    }

    /// Waits for all jobs of a request.
    async fn outcomes(
        &self,
        accepted: Accepted,
        deadline: Instant,
        tally: &Tally,
    ) -> Result<Vec<Outcome>, Refusal> {
        timeout_at(deadline, all(accepted, tally)).await.map_err(|_| self.timed_out())?
    }
}

fn engine_is_gone() -> Refusal {
    Refusal::internal("the engine has stopped")
}

async fn all(accepted: Accepted, tally: &Tally) -> Result<Vec<Outcome>, Refusal> {
    let Accepted { prompt_tokens, mut events } = accepted;
    let mut outcomes: Vec<Option<Outcome>> = prompt_tokens.iter().map(|_| None).collect();
    while outcomes.iter().any(Option::is_none) {
        match events.recv().await.ok_or_else(engine_is_gone)? {
            (index, Event::Done(outcome)) => {
                tally.answer(outcome.response.tokens.len());
                outcomes[index] = Some(*outcome);
            }
            (_, Event::Failed(error)) => return Err(Refusal::from_engine(&error, "prompt")),
            (_, Event::Step { .. }) => {}
            (_, Event::Unread) => return Err(Refusal::unread()),
        }
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// Turns a request's events into those of its stream.
struct Stream {
    frame: Frame,
    prompt_tokens: Option<usize>,
    include_usage: bool,
    events: mpsc::Sender<Result<Value, Refusal>>,
    tally: Tally,
    _pass: Pass,
}

impl Stream {
    async fn send(&self, mut accepted: Accepted) -> Result<(), Refusal> {
        let choices = accepted.prompt_tokens.len();
        for event in (0..choices).filter_map(|index| self.frame.opening(index)) {
            self.push(event).await?;
        }
        let mut steps = vec![0; choices];
        let mut usage = Usage { prompt: self.prompt_tokens, completion: 0 };
        let mut left = choices;
        while left > 0 {
            let (index, event) = accepted.events.recv().await.ok_or_else(engine_is_gone)?;
            match event {
                Event::Step { chunks, text } => {
                    if let Some(event) = self.frame.step(index, steps[index], &chunks, &text) {
                        self.push(event).await?;
                    }
                    steps[index] += chunks.len();
                }
                Event::Done(outcome) => {
                    usage.completion += outcome.response.tokens.len();
                    self.tally.answer(outcome.response.tokens.len());
                    self.push(self.frame.end(index, &outcome)).await?;
                    left -= 1;
                }
                Event::Failed(error) => return Err(Refusal::from_engine(&error, "prompt")),
                Event::Unread => return Err(Refusal::unread()),
            }
        }
        if self.include_usage { self.push(self.frame.usage(&usage)).await } else { Ok(()) }
    }

    async fn push(&self, event: Value) -> Result<(), Refusal> {
        self.events.send(Ok(event)).await.map_err(|_| Refusal::cancelled())
    }
}
