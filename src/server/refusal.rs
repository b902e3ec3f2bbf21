//! What a client is told when it does not get an answer: OpenAI's error body.

use serde_json::{Value, json};

use crate::error::Error;

/// An error as it is sent: a status, and the body that OpenAI's clients know.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// OpenAI's kind of error.
    kind: &'static str,
    /// A word for programs.
    code: Option<&'static str>,
    /// The field of the request that is to blame.
    pub param: Option<String>,
    /// A sentence for people.
    pub message: String,
    /// Seconds after which it may be tried again.
    pub retry_after: Option<u64>,
}

impl Refusal {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, kind, code: None, param: None, message, retry_after: None }
    }

    /// 400: a field has a value that cannot work. `reason` continues the sentence: "must be …".
    pub fn field(param: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("`{param}` {reason}");
        Self { param: Some(param), ..Self::new(400, "invalid_request_error", message) }
    }

    /// 400: the body is not what it should be.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// 401
    pub fn unauthorized() -> Self {
        let message = "this server wants its API key: send the header Authorization: Bearer KEY";
        let refusal = Self::new(401, "invalid_request_error", message);
        Self { code: Some("invalid_api_key"), ..refusal }
    }

    /// 403: the request names a host that this server does not go by.
    pub fn unknown_host(host: &str) -> Self {
        let message = format!(
            "the header Host is {host:?}, but without an API key this server takes only localhost, 127.0.0.1 and \
             [::1], so that no web page can use it under another name; ask it by one of these, or start it with \
             --allow-host NAME"
        );
        let refusal = Self::new(403, "invalid_request_error", message);
        Self { code: Some("unknown_host"), ..refusal }
    }

    /// 404
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(404, "invalid_request_error", format!("there is no {what} here"))
    }

    /// 404: another model than the one that is served.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here; {served:?} is");
        let refusal = Self::new(404, "invalid_request_error", message);
        Self { code: Some("model_not_found"), param: Some("model".into()), ..refusal }
    }

    /// 405
    pub fn wrong_method(method: &str, path: &str) -> Self {
        Self::new(405, "invalid_request_error", format!("{path} does not take {method}"))
    }

    /// 408: the client was too slow.
    pub fn too_slow() -> Self {
        Self::new(408, "invalid_request_error", "the request's body took too long to arrive")
    }

    /// 413: `what`, "the request's body".
    pub fn too_large(what: &str, limit: usize) -> Self {
        let message = format!("{what} is larger than {limit} bytes");
        Self::new(413, "invalid_request_error", message)
    }

    /// 415
    pub fn not_json() -> Self {
        let message = "the request must be JSON: send the header Content-Type: application/json";
        Self::new(415, "invalid_request_error", message)
    }

    /// 415: the body is compressed.
    pub fn encoded() -> Self {
        let message =
            "the request's body must be sent as it is: leave out the header Content-Encoding";
        Self::new(415, "invalid_request_error", message)
    }

    /// 429: too many wait already.
    pub fn queue_full(retry_after: u64) -> Self {
        let message = format!("too many searches are waiting; try again in {retry_after} s");
        let refusal = Self::new(429, "rate_limit_error", message);
        Self { code: Some("queue_full"), retry_after: Some(retry_after), ..refusal }
    }

    /// 408: the client does not read.
    pub fn unread() -> Self {
        let message = "the answer was given up: too much of it waited to be read";
        Self::new(408, "invalid_request_error", message)
    }

    /// 499: nobody wants the answer any more.
    pub fn cancelled() -> Self {
        Self::new(499, "cancelled", "the request was cancelled")
    }

    /// 503: the models are not loaded yet, or the server is about to stop.
    pub fn unavailable(why: &str) -> Self {
        Self { retry_after: Some(1), ..Self::new(503, "server_error", why) }
    }

    /// 503: the device has failed for good, and the server ends.
    fn broken(error: &Error) -> Self {
        let message = format!("the server's device has failed, and the server ends: {error}");
        Self { code: Some("device_failed"), ..Self::unavailable(&message) }
    }

    /// 503: there is work, but none is done.
    pub fn stalled(seconds: u64) -> Self {
        let message = format!(
            "there is work, but no step of the models, and no prompt that is read, has been done with for {seconds} s"
        );
        Self { code: Some("stalled"), ..Self::unavailable(&message) }
    }

    /// 504: it took longer than the server allows.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("there was no answer within {seconds} s, the server's limit");
        Self { code: Some("timeout"), ..Self::new(504, "server_error", message) }
    }

    /// 500: not the request's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", message)
    }

    /// The engine's error, in terms of the request whose prompt stood in the field `source`.
    pub fn from_engine(error: &Error, source: &str) -> Self {
        let message = error.to_string();
        match error {
            // The base model is on another server, which takes texts alone.
            Error::Flag { flag, .. } if flag == "--base-tokenizer" => {
                Self { message: no_chat_template("base", source), ..Self::field(source, "") }
            }
            Error::Flag { flag, reason } => match field_of(flag) {
                Some(field) => {
                    let reason = reason
                        .replace("--successors", "search.successors")
                        .replace("with --compat", "on a server started with --compat")
                        .replace("--top-k", "top_k");
                    Self::field(field, reason)
                }
                None => Self::internal(message),
            },
            // Where that server is, and what it says, is not for everybody: the engine has it on stderr.
            Error::Remote { .. } => {
                Self::new(502, "server_error", "the base model's server failed; the log says how")
            }
            Error::ContextTooShort { model, context, tokens, new_tokens } => {
                let message = format!(
                    "the {model} model's context holds {context} tokens, but the prompt has \
                     {tokens} and up to {new_tokens} more were asked for; shorten it or lower \
                     `max_tokens`"
                );
                let code = Some("context_length_exceeded");
                Self { code, message, ..Self::field(source, "") }
            }
            Error::NoSuchToken { model, id, name, rows } => {
                let name = name.as_ref().map(|name| format!(" ({name:?})")).unwrap_or_default();
                let reason = format!(
                    "has token {id}{name}, which the {model} model does not have: its vocabulary has {rows} \
                     entries"
                );
                Self::field(source, reason)
            }
            Error::NoEndToken => {
                Self::field("eos", "is true, but the guide has no end-of-sequence token")
            }
            Error::CacheTooShort { model, cache, tokens, new_tokens } => {
                let message = format!(
                    "the {model} model's cache holds {cache} tokens here, but the prompt has {tokens} \
                     and up to {new_tokens} more were asked for; shorten it or lower `max_tokens`"
                );
                let code = Some("context_length_exceeded");
                Self { code, message, ..Self::field(source, "") }
            }
            Error::TooLargeForCache { needed, capacity } => {
                let reason = format!(
                    "needs up to {needed} pages of the cache, which has {capacity}; lower \
                     beam_width, successors or `max_tokens`"
                );
                Self::field("search", reason)
            }
            Error::EmptyPrompt { model } => {
                Self::field(source, format!("is empty for the {model} model: give it text"))
            }
            Error::Unreadable { model, error } => {
                // Paths and flags are the server's business.
                let message = match &**error {
                    Error::NoChatTemplate { .. } => no_chat_template(model, source),
                    Error::Template { reason, .. } => {
                        format!("the {model} model's {}", reason.trim_start_matches("the "))
                    }
                    Error::Tokenizer { reason, .. } => {
                        format!("the {model} model's tokenizer {reason}")
                    }
                    _ => return Self::internal(format!("the {model} model reads no prompts")),
                };
                Self { message, ..Self::field(source, "") }
            }
            error if error.is_final() => Self::broken(error),
            _ => Self::internal(message),
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`
    pub fn body(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }
}

/// What to do about a conversation that a model cannot read, which stood in the field `source`.
fn no_chat_template(model: &str, source: &str) -> String {
    let instead = if source == "messages" {
        "use /v1/completions, whose prompts the server puts into a format if it is started with \
         --base-template and --guide-template"
    } else {
        "give the prompt as text"
    };
    format!("the {model} model has no chat template, which messages need; {instead}")
}

/// The request's field that a flag of the command line is called, if it has one.
fn field_of(flag: &str) -> Option<&'static str> {
    Some(match flag {
        "--method" => "search.method",
        "--beam-width" => "search.beam_width",
        "--successors" => "search.successors",
        "--chunk-len" => "search.chunk_len",
        "--max-new-tokens" => "max_tokens",
        "--stop" => "stop",
        "--temperature" => "temperature",
        "--top-p" => "top_p",
        _ => return None,
    })
}
