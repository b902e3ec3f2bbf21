//! A client of OpenAI's completions protocol, as far as a search needs it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::http::{HeaderMap, StatusCode};

use crate::error::{Error, Result};
use crate::philox::philox4x32;

/// An answer is never so large.
const MAX_BODY_BYTES: u64 = 64 << 20;
/// A connection is there by then, or there is none.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest wait before asking again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A server that asks for more patience than this is not waited for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A secret. It is shown nowhere: neither in messages nor by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key in an environment variable; `flag` names it in the error.
    ///
    /// # Errors
    /// [`Error::Flag`] when there is none, or it cannot be sent in a header.
    pub fn from_env(flag: &str, variable: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::flag(flag, format!("names {variable}, which {reason}"));
        let key = match std::env::var(variable) {
            Ok(key) => key.trim().to_owned(),
            Err(std::env::VarError::NotPresent) => return Err(refuse("is not set")),
            Err(std::env::VarError::NotUnicode(_)) => return Err(refuse("is not UTF-8")),
        };
        match key.as_str() {
            "" => Err(refuse("is empty")),
            text if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Self(key)),
            _ => Err(refuse("has characters that no key has")),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// A server and how to treat it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The root of its API, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// Sent as a bearer token.
    pub key: Option<ApiKey>,
    /// A request may take this long.
    pub timeout: Duration,
    /// How often a request that failed is sent again.
    pub retries: u32,
    /// Before it is sent again for the first time; doubled each time.
    pub backoff: Duration,
    /// Requests at the same time.
    pub requests: usize,
    /// Choices that one request asks for at most.
    pub choices: usize,
    /// Is told when a request fails that will be sent again, if all was well before: whoever waits should
    /// know for what.
    pub trouble: fn(&Error),
}

/// A request's body.
#[derive(Clone, Debug, Serialize)]
pub struct Ask<'a> {
    pub model: &'a str,
    pub prompt: &'a Value,
    pub n: usize,
    pub max_tokens: usize,
    pub temperature: f32,
    pub top_p: f32,
    /// Not in the protocol, but known to all servers that one runs oneself. Left out when it
    /// says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    pub seed: u32,
}

/// A continuation that a server wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub text: String,
    /// It ended there of itself.
    pub ended: bool,
    /// Tokens, as far as the server tells.
    pub tokens: usize,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<AnsweredChoice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct AnsweredChoice {
    text: Option<String>,
    #[serde(default)]
    index: Option<usize>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    completion_tokens: Option<usize>,
}

/// Why a request was not answered.
struct Failure {
    reason: String,
    /// Whether it may be answered another time, and how much later.
    again: Option<Duration>,
}

impl Failure {
    fn lasting(reason: String) -> Self {
        Self { reason, again: None }
    }

    fn passing(reason: String) -> Self {
        Self { reason, again: Some(Duration::ZERO) }
    }
}

/// Sends requests, and sends them again.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    endpoint: Endpoint,
    /// The request answered last failed.
    troubled: AtomicBool,
}

impl Client {
    /// # Errors
    /// [`Error::Flag`] by the name `--base-url` for an address that cannot be one.
    pub fn new(endpoint: Endpoint) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::flag("--base-url", reason));
        let root = endpoint.url.trim_end_matches('/');
        let Some((scheme, rest)) = root.split_once("://") else {
            return refuse("must begin with http:// or https://");
        };
        let host = rest.split('/').next().unwrap_or_default();
        match scheme {
            "http" => {}
            "https" if cfg!(feature = "tls") => {}
            "https" => return refuse("needs https, which this program was built without"),
            _ => return refuse("must begin with http:// or https://"),
        }
        if host.contains('@') {
            return refuse(
                "must not hold a password; name an environment variable that holds the \
                           key by --api-key-env",
            );
        }
        if host.is_empty() || root.contains(['?', '#']) || root.contains(char::is_whitespace) {
            return refuse("must be an address such as http://127.0.0.1:8000/v1");
        }
        if root.ends_with("/completions") {
            return refuse(
                "must be the root of the API, such as http://127.0.0.1:8000/v1, without \
                           /completions",
            );
        }
        let url = format!("{root}/completions");
        let uri = url.parse::<ureq::http::Uri>().ok();
        let authority = uri.as_ref().and_then(|uri| uri.authority());
        // A port that is none is not seen as one.
        if authority.is_none_or(|a| a.port_u16().is_none() && a.as_str() != a.host()) {
            return refuse("must be an address such as http://127.0.0.1:8000/v1");
        }
        let here = ["127.", "localhost", "[::1]"].iter().any(|name| host.starts_with(name));
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT.min(endpoint.timeout)))
            .timeout_per_call(Some(endpoint.timeout))
            .max_idle_connections(endpoint.requests)
            .max_idle_connections_per_host(endpoint.requests)
            .user_agent(concat!("trimtab/", env!("CARGO_PKG_VERSION")));
        if here {
            config = config.proxy(None);
        }
        let troubled = AtomicBool::new(false);
        Ok(Self { agent: config.build().into(), url, endpoint, troubled })
    }

    /// How the server is treated.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// An error of this server.
    pub fn error(&self, reason: String) -> Error {
        Error::Remote { url: self.url.clone(), reason: self.without_key(reason) }
    }

    /// A server may well repeat what it was sent.
    fn without_key(&self, text: String) -> String {
        match &self.endpoint.key {
            Some(ApiKey(key)) => text.replace(key.as_str(), "…"),
            None => text,
        }
    }

    /// Asks until there is at least one choice, and at most `n`, or until the retries are spent or
    /// the answer is not `wanted` any more.
    ///
    /// # Errors
    /// [`Error::Remote`] with the last answer.
    pub fn complete(&self, ask: &Ask<'_>, wanted: impl Fn() -> bool) -> Result<Vec<Choice>> {
        let mut attempt = 0;
        loop {
            let failure = match self.ask(ask) {
                Ok(choices) => {
                    self.troubled.store(false, Ordering::Relaxed);
                    return Ok(choices);
                }
                Err(failure) => failure,
            };
            attempt += 1;
            match failure.again {
                Some(not_before) if attempt <= self.endpoint.retries && wanted() => {
                    if !self.troubled.swap(true, Ordering::Relaxed) {
                        let reason = format!("{}; it will be asked again", failure.reason);
                        (self.endpoint.trouble)(&self.error(reason));
                    }
                    std::thread::sleep(not_before.max(self.wait(ask.seed, attempt)));
                }
                Some(_) if attempt > 1 => {
                    return Err(self.error(format!("{} (asked {attempt} times)", failure.reason)));
                }
                _ => return Err(self.error(failure.reason)),
            }
        }
    }

    /// Twice as long each time, less up to half of it, so that many who failed together do not
    /// come back together.
    fn wait(&self, seed: u32, attempt: u32) -> Duration {
        let doubled = self.endpoint.backoff.saturating_mul(1 << (attempt - 1).min(16));
        let bits = philox4x32([seed, attempt, 0, 0], [0x7265, 0x7472])[0];
        doubled.min(LONGEST_WAIT).mul_f64(1.0 - 0.5 * f64::from(bits) / f64::from(u32::MAX))
    }

    fn ask(&self, ask: &Ask<'_>) -> Result<Vec<Choice>, Failure> {
        let body = serde_json::to_vec(ask).expect("plain data becomes JSON");
        let mut request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json");
        if let Some(ApiKey(key)) = &self.endpoint.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(&body[..]).map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let read = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
        let body = read.map_err(unreachable)?;
        if !status.is_success() {
            return Err(refused(status, &headers, &body));
        }
        choices(ask, &headers, &body)
    }
}

/// A request that got no answer.
fn unreachable(error: ureq::Error) -> Failure {
    let reason = match &error {
        ureq::Error::Timeout(at) => format!("no answer in time ({at})"),
        error => format!("no answer: {error}"),
    };
    match error {
        // A certificate that is not trusted will not be the next time.
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Failure::lasting(reason)
        }
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::BodyExceedsLimit(_)
        | ureq::Error::Tls(_) => Failure::lasting(reason),
        _ => Failure::passing(reason),
    }
}

/// A request that was answered with a status that is an error.
fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let message = message(body);
    let what = if message.is_empty() { String::new() } else { format!(": {message}") };
    let reason = format!("status {}{what}", status.as_u16());
    let passing = matches!(status.as_u16(), 408 | 409 | 425 | 429) || status.is_server_error();
    if !passing {
        return Failure::lasting(reason);
    }
    let seconds = headers.get("retry-after").and_then(|value| seconds_until(value.to_str().ok()?));
    match seconds {
        Some(seconds) if seconds > LONGEST_RETRY_AFTER.as_secs_f64() => {
            Failure::lasting(format!("{reason}; it asks to come back in {seconds:.0} seconds"))
        }
        Some(seconds) => Failure { reason, again: Some(Duration::from_secs_f64(seconds)) },
        None => Failure::passing(reason),
    }
}

/// The seconds that a `Retry-After` header means: it holds them, or a date.
fn seconds_until(header: &str) -> Option<f64> {
    if let Ok(seconds) = header.trim().parse::<f64>() {
        return Some(seconds).filter(|seconds| *seconds >= 0.0);
    }
    let date = httpdate::parse_http_date(header.trim()).ok()?;
    Some(date.duration_since(SystemTime::now()).map_or(0.0, |wait| wait.as_secs_f64()))
}

/// The server's own words, wherever servers put them.
fn message(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = [&json["error"]["message"], &json["message"], &json["detail"], &json["error"]];
    match places.into_iter().find_map(Value::as_str) {
        Some(message) => shortened(message),
        None => shortened(&String::from_utf8_lossy(body)),
    }
}

/// One line, of a length that one reads.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The choices of an answer, in order, at most as many as were asked for.
fn choices(ask: &Ask<'_>, headers: &HeaderMap, body: &[u8]) -> Result<Vec<Choice>, Failure> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| {
        let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or("no content type");
        let (error, text) = (error.to_string(), shortened(&String::from_utf8_lossy(body)));
        Failure::passing(format!("the answer ({kind}) is not a completion: {error}: {text}"))
    })?;
    let mut answered = answer.choices;
    answered.sort_by_key(|choice| choice.index);
    answered.truncate(ask.n);
    if answered.is_empty() {
        return Err(Failure::passing("the answer has no choices".into()));
    }
    let mut choices = Vec::with_capacity(answered.len());
    for choice in answered {
        let ended = match choice.finish_reason.as_deref() {
            Some("length" | "max_tokens") => false,
            Some("stop" | "eos" | "eos_token" | "stop_sequence" | "end_turn") => true,
            Some("content_filter") => {
                return Err(Failure::lasting("its content filter took a continuation away".into()));
            }
            other => {
                let reason = other.unwrap_or("nothing");
                let reason = format!("a continuation finished for {reason:?}, not length or stop");
                return Err(Failure::passing(reason));
            }
        };
        let Some(text) = choice.text else {
            return Err(Failure::passing("a choice has no text".into()));
        };
        choices.push(Choice { text, ended, tokens: ask.max_tokens });
    }
    if let Some(total) = answer.usage.and_then(|usage| usage.completion_tokens) {
        share(total, &mut choices, ask.max_tokens);
    }
    Ok(choices)
}

/// Those that were cut have as many tokens as were asked for. A server tells only the sum: what is
/// left of it goes to those that ended, evenly.
fn share(total: usize, choices: &mut [Choice], max_tokens: usize) {
    let ended = choices.iter().filter(|choice| choice.ended).count();
    let cut = (choices.len() - ended) * max_tokens;
    let mut left = total.saturating_sub(cut);
    let shares = choices.iter_mut().filter(|choice| choice.ended).zip((1..=ended).rev());
    for (choice, others) in shares {
        // Ending takes a token, whether it is counted or not.
        choice.tokens = left.div_ceil(others).clamp(1, max_tokens);
        left -= choice.tokens.min(left);
    }
}
