//! How requests are spelt in JSON, where both kinds of them are spelt alike.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::fields::{Field, Fields, MESSAGE, Object};
use super::refusal::Refusal;
use crate::text::{Message, Prompt};

/// One turn of a conversation.
#[derive(Deserialize)]
pub struct WireMessage {
    role: String,
    content: Content,
}

impl Fields for WireMessage {
    const TABLE: &'static [Field] = MESSAGE;
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of {\"type\": \"text\", \"text\"} parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    r#type: String,
    text: String,
}

/// Reads JSON: `what`, "the body". An error names the field by its path.
pub fn read<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Refusal> {
    let malformed = |reason| format!("{what} is not a valid request: {reason}");
    let mut json = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if !error.is_data() {
            return Refusal::malformed(malformed(error.to_string()));
        }
        let reason = error.to_string();
        // Positions help nobody who has the field's name.
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let within = |field: &str| {
            if path == "." { field.to_owned() } else { format!("{path}.{field}") }
        };
        let about = [("missing field `", "is missing"), ("duplicate field `", "is given twice")];
        for (start, words) in about {
            if let Some(field) = reason.strip_prefix(start) {
                return Refusal::field(within(field.trim_end_matches('`')), words);
            }
        }
        let reason = in_words(reason);
        match &*path {
            "." if reason.starts_with("must be") => Refusal::malformed(format!("{what} {reason}")),
            "." => Refusal::malformed(malformed(reason)),
            _ => Refusal::field(path, reason),
        }
    })?;
    json.end().map_err(|error| Refusal::malformed(malformed(error.to_string())))?;
    Ok(value)
}

/// Goes on with a sentence that a field's name begins. What is not serde's own does so already.
fn in_words(reason: &str) -> String {
    if !["invalid ", "unknown "].iter().any(|word| reason.starts_with(word)) {
        return reason.to_owned();
    }
    if reason.ends_with("expected an object") {
        return "must be an object".to_owned();
    }
    // Rust's names are not the sender's.
    let names = [
        ("unknown variant", "unknown value"),
        ("invalid type: map", "invalid type: object"),
        ("invalid type: sequence", "invalid type: list"),
        ("expected a sequence", "expected a list"),
        ("expected f64", "expected a number"),
    ];
    let renamed =
        names.iter().fold(reason.to_owned(), |text, (from, to)| text.replacen(from, to, 1));
    format!("is wrong: {renamed}")
}

/// A conversation that stood in the field `source`.
pub fn conversation(messages: Vec<Object<WireMessage>>, source: &str) -> Result<Prompt, Refusal> {
    if messages.is_empty() {
        return Err(Refusal::field(source, "must not be empty"));
    }
    let messages = messages.into_iter().enumerate().map(|(index, Object(message))| {
        let content = match message.content {
            Content::Text(text) => text,
            Content::Parts(parts) => match parts.iter().find(|part| part.r#type != "text") {
                None => parts.into_iter().map(|part| part.text).collect(),
                Some(part) => {
                    let field = format!("{source}[{index}].content");
                    let reason =
                        format!("holds a part of type {:?}; only text is read", part.r#type);
                    return Err(Refusal::field(field, reason));
                }
            },
        };
        Ok(Message { role: message.role, content })
    });
    Ok(Prompt::Chat(messages.collect::<Result<_, _>>()?))
}
