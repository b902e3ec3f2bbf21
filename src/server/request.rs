//! What a client may ask, read and checked once for HTTP and stdio.
//!
//! Every field is either honoured or refused by its name, unless [`super::fields`] says that it
//! changes no answer.

use serde::Deserialize;
use serde_json::Value;

use super::fields::{Field, Fields, Object, REQUEST, STREAM_OPTIONS};
use super::number::{Count, Length, Seed, TopK};
use super::refusal::Refusal;
use super::wire::{WireMessage, conversation, read};
use crate::error::Error;
use crate::proposer::Sampling;
use crate::search::{Method, Settings, Shape, Shaped};
use crate::text::{Prompt, StopStrings};

/// What a request gets that does not say otherwise.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// How to answer.
    pub method: Method,
    /// W, K and L for that method, where the server was told.
    pub shape: Shape,
    /// All else.
    pub settings: Settings,
    /// None draws another seed for each request.
    pub seed: Option<u64>,
    /// Whether there is a guide; without one only `sample` works.
    pub guided: bool,
    /// Whether the base model tells its tokens.
    pub tells_tokens: bool,
}

/// What a request may ask for at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Bytes of a prompt.
    pub prompt: usize,
    /// W·K of a search.
    pub candidates: usize,
    /// Tokens of an answer.
    pub tokens: usize,
    /// Answers (or scores) of one request.
    pub answers: usize,
}

/// A request to write.
#[derive(Debug)]
pub struct Generation {
    /// Whether it is a conversation.
    pub chat: bool,
    /// What to continue; several make several answers.
    pub prompts: Vec<Prompt>,
    /// Answers for each of them; the i-th one's seed is `settings.seed` + i.
    pub n: usize,
    /// How to search.
    pub settings: Settings,
    /// The name of that.
    pub method: Method,
    /// Whether to send events as they come.
    pub stream: bool,
    /// Whether a stream ends with the number of tokens.
    pub include_usage: bool,
    /// Whether to send each step's candidates.
    pub trace: bool,
    /// Whether to send the answers' token ids.
    pub token_ids: bool,
}

/// A response to score.
#[derive(Debug)]
pub struct ScoreItem {
    /// What the response answers.
    pub prompt: Prompt,
    /// The response.
    pub response: String,
    /// Whether its end counts: the end-of-sequence token is scored too.
    pub ended: bool,
}

/// A request to score.
#[derive(Debug)]
pub struct Scores {
    /// One or many.
    pub items: Vec<ScoreItem>,
}

/// All fields that a request to write can have and that are honoured, of both endpoints.
#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Option<Value>,
    messages: Option<Vec<Object<WireMessage>>>,
    search: Option<Object<WireSearch>>,
    max_tokens: Option<Count>,
    max_completion_tokens: Option<Count>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<TopK>,
    n: Option<Count>,
    /// Must be `n`.
    best_of: Option<Count>,
    seed: Option<Seed>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
}

impl Fields for Body {
    const TABLE: &'static [Field] = REQUEST;
}

#[derive(Default, Deserialize)]
struct WireSearch {
    method: Option<Method>,
    beam_width: Option<Count>,
    successors: Option<Count>,
    chunk_len: Option<Length>,
    trace: Option<bool>,
    token_ids: Option<bool>,
}

impl Fields for WireSearch {}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Fields for StreamOptions {
    const TABLE: &'static [Field] = STREAM_OPTIONS;
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct ScoreBody {
    model: Option<String>,
    prompt: Option<WirePrompt>,
    response: Option<String>,
    eos: Option<bool>,
    inputs: Option<Vec<Object<WireScore>>>,
}

impl Fields for ScoreBody {}

#[derive(Deserialize)]
struct WireScore {
    prompt: WirePrompt,
    response: String,
    eos: Option<bool>,
}

impl Fields for WireScore {}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of {\"role\", \"content\"} messages")]
enum WirePrompt {
    Text(String),
    Chat(Vec<Object<WireMessage>>),
}

impl Generation {
    /// A request to `/v1/completions`, or with `chat` to `/v1/chat/completions`.
    pub fn read(
        body: &[u8],
        chat: bool,
        model: &str,
        defaults: &Defaults,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let Object::<Body>(mut body) = read("the body", body)?;
        check_model(body.model.as_deref(), model)?;
        let prompts = if chat {
            absent("prompt", body.prompt.is_some(), "/v1/chat/completions")?;
            let messages = body.messages.take().ok_or_else(|| missing("messages"))?;
            vec![conversation(messages, "messages")?]
        } else {
            absent("messages", body.messages.is_some(), "/v1/completions")?;
            absent(
                "max_completion_tokens",
                body.max_completion_tokens.is_some(),
                "/v1/completions",
            )?;
            texts(body.prompt.take().ok_or_else(|| missing("prompt"))?)?
        };
        let source = if chat { "messages" } else { "prompt" };
        prompts.iter().try_for_each(|prompt| check_length(prompt, source, limits))?;

        let Object(search) = body.search.take().unwrap_or_default();
        let (method, shaped) = method_and_shape(&search, defaults)?;
        let settings = settings(&body, shaped, defaults, limits)?;
        let n = body.n.map_or(1, |Count(n)| n);
        if n == 0 {
            return Err(Refusal::field("n", "must be at least 1"));
        }
        if body.best_of.is_some_and(|Count(best_of)| best_of != n) {
            return Err(Refusal::field("best_of", "is not supported; use `search.method` bon"));
        }
        if n.saturating_mul(prompts.len()) > limits.answers {
            let reason = format!("times the prompts must be at most {}", limits.answers);
            return Err(Refusal::field("n", reason));
        }
        let token_ids = search.token_ids.unwrap_or(false);
        if token_ids && !defaults.tells_tokens {
            let reason = "cannot be true: the base model is on another server, which does not tell its tokens";
            return Err(Refusal::field("search.token_ids", reason));
        }
        let stream = body.stream.unwrap_or(false);
        if body.stream_options.is_some() && !stream {
            return Err(Refusal::field("stream_options", "has no meaning without `stream`"));
        }
        let include_usage = body.stream_options.and_then(|Object(options)| options.include_usage);
        Ok(Self {
            chat,
            prompts,
            n,
            settings,
            method,
            stream,
            include_usage: include_usage.unwrap_or(false),
            trace: search.trace.unwrap_or(false),
            token_ids,
        })
    }
}

impl Scores {
    /// A request to `/v1/score`: one `{"prompt", "response", "eos"}`, or a list of them in `inputs`.
    pub fn read(body: &[u8], model: &str, limits: &Limits) -> Result<Self, Refusal> {
        let Object::<ScoreBody>(body) = read("the body", body)?;
        check_model(body.model.as_deref(), model)?;
        let single = body.prompt.is_some() || body.response.is_some() || body.eos.is_some();
        let inputs = match (body.inputs, single) {
            (Some(_), true) => {
                let reason = "must not stand beside `prompt`, `response` and `eos`";
                return Err(Refusal::field("inputs", reason));
            }
            (Some(inputs), false) => inputs,
            (None, _) => vec![Object(WireScore {
                prompt: body.prompt.ok_or_else(|| missing("prompt"))?,
                response: body.response.ok_or_else(|| missing("response"))?,
                eos: body.eos,
            })],
        };
        if !(1..=limits.answers).contains(&inputs.len()) {
            let reason = format!("must hold from 1 to {} of them", limits.answers);
            return Err(Refusal::field("inputs", reason));
        }
        let items = inputs.into_iter().enumerate().map(|(index, Object(input))| {
            let source = if single { "prompt".into() } else { format!("inputs[{index}].prompt") };
            let prompt = match input.prompt {
                WirePrompt::Text(text) => Prompt::Text(text),
                WirePrompt::Chat(messages) => conversation(messages, &source)?,
            };
            check_length(&prompt, &source, limits)?;
            Ok(ScoreItem { prompt, response: input.response, ended: input.eos.unwrap_or(false) })
        });
        Ok(Self { items: items.collect::<Result<_, _>>()? })
    }
}

fn missing(field: &str) -> Refusal {
    Refusal::field(field, "is missing")
}

fn absent(field: &str, given: bool, endpoint: &str) -> Result<(), Refusal> {
    let refusal = || Refusal::field(field, format!("is not a field of {endpoint}"));
    if given { Err(refusal()) } else { Ok(()) }
}

fn check_model(asked: Option<&str>, served: &str) -> Result<(), Refusal> {
    match asked {
        Some(asked) if asked != served => Err(Refusal::unknown_model(asked, served)),
        _ => Ok(()),
    }
}

fn texts(prompt: Value) -> Result<Vec<Prompt>, Refusal> {
    let wrong = || {
        let reason = "must be a string or a list of strings (token ids are not understood)";
        Refusal::field("prompt", reason)
    };
    let prompts = match prompt {
        Value::String(text) => vec![Prompt::Text(text)],
        Value::Array(list) => list
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong()),
    };
    if prompts.is_empty() {
        Err(Refusal::field("prompt", "must not be empty"))
    } else {
        Ok(prompts)
    }
}

fn check_length(prompt: &Prompt, source: &str, limits: &Limits) -> Result<(), Refusal> {
    let bytes = match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Chat(messages) => messages.iter().map(|m| m.role.len() + m.content.len()).sum(),
    };
    if bytes <= limits.prompt {
        return Ok(());
    }
    Err(Refusal::field(source, format!("has {bytes} bytes; at most {} are taken", limits.prompt)))
}

/// The server's W, K and L are for its own method; another one that a request names has its own.
fn method_and_shape(search: &WireSearch, defaults: &Defaults) -> Result<(Method, Shaped), Refusal> {
    let method = search.method.unwrap_or(defaults.method);
    let field = |reason: &str| Err(Refusal::field("search.method", reason));
    if method != Method::Sample && !defaults.guided {
        return field("must be sample: this server has no guide");
    }
    match (method == Method::Eft, defaults.method == Method::Eft) {
        (true, false) => return field("can be eft only on a server started with --method eft"),
        (false, true) => return field("must be eft: this server was started with --method eft"),
        _ => {}
    }
    let own = if method == defaults.method { defaults.shape } else { Shape::default() };
    let shape = Shape {
        beam_width: search.beam_width.map(|Count(w)| w).or(own.beam_width),
        successors: search.successors.map(|Count(k)| k).or(own.successors),
        chunk_len: search.chunk_len.map(|Length(len)| len).or(own.chunk_len),
    };
    let shaped = method.shape(shape).map_err(|error| {
        let reason = format!("with `search.method` {}", method.name());
        let mut refusal = refused(&error);
        refusal.message =
            refusal.message.replace(&format!("with --method {}", method.name()), &reason);
        refusal
    })?;
    Ok((method, shaped))
}

fn settings(
    body: &Body,
    shaped: Shaped,
    defaults: &Defaults,
    limits: &Limits,
) -> Result<Settings, Refusal> {
    let default = &defaults.settings;
    let max_new_tokens = match (body.max_tokens, body.max_completion_tokens) {
        (Some(_), Some(_)) => {
            let reason = "must not stand beside `max_completion_tokens`, its other name";
            return Err(Refusal::field("max_tokens", reason));
        }
        (one, other) => one.or(other).map_or(default.max_new_tokens, |Count(tokens)| tokens),
    };
    let stop = match &body.stop {
        None => default.stop.clone(),
        Some(stop) => {
            let strings = match stop {
                Stop::One(one) => vec![one.clone()],
                Stop::Many(many) => many.clone(),
            };
            if strings.len() > MAX_STOPS {
                let reason = format!("must be at most {MAX_STOPS} strings");
                return Err(Refusal::field("stop", reason));
            }
            StopStrings::new(strings).map_err(|error| refused(&error))?
        }
    };
    let settings = Settings {
        beam_width: shaped.beam_width,
        successors: shaped.successors,
        chunk_len: shaped.chunk_len,
        max_new_tokens,
        sampling: Sampling {
            temperature: body.temperature.map_or(default.sampling.temperature, |t| t as f32),
            top_k: body.top_k.map_or(default.sampling.top_k, |TopK(k)| k),
            top_p: body.top_p.map_or(default.sampling.top_p, |p| p as f32),
        },
        seed: body.seed.map(|Seed(seed)| seed).or(defaults.seed).unwrap_or_else(another_seed),
        stop,
        compat: default.compat,
    };
    // This server's own limits first: they are the narrower ones.
    if settings.beam_width.saturating_mul(settings.successors) > limits.candidates {
        let reason = format!("times `search.successors` must be at most {}", limits.candidates);
        return Err(Refusal::field("search.beam_width", reason));
    }
    if settings.max_new_tokens > limits.tokens {
        let reason = format!("must be at most {}", limits.tokens);
        return Err(Refusal::field("max_tokens", reason));
    }
    settings.validate().map_err(|error| refused(&error))?;
    Ok(settings)
}

/// Stop strings of one request.
const MAX_STOPS: usize = 16;

fn refused(error: &Error) -> Refusal {
    Refusal::from_engine(error, "prompt")
}

/// A seed that nobody has named, small enough for JavaScript's numbers.
fn another_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now()) >> 11
}
