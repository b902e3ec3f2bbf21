//! How requests are spelt in JSON, where both kinds of them are spelt alike.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;
use crate::text::{Message, Prompt};

/// One turn of a conversation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireMessage {
    role: String,
    content: Content,
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

/// Reads a body; an error names the field by its path.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        if !reason.is_data() || path == "." {
            return Refusal::malformed(format!("the body is not a valid request: {reason}"));
        }
        let reason = reason.to_string();
        // Positions help nobody who has the field's name.
        let reason = reason.split(" at line ").next().unwrap_or_default();
        if reason.starts_with("unknown field") {
            Refusal::field(path, "is not a field that trimtab knows")
        } else {
            Refusal::field(path, format!("is wrong: {}", in_words(reason)))
        }
    })?;
    let rest = |error| Refusal::malformed(format!("the body is not a valid request: {error}"));
    json.end().map_err(rest)?;
    Ok(value)
}

/// Rust's names of types are not the sender's.
fn in_words(reason: &str) -> String {
    let Some((found, expected)) = reason.split_once("expected ") else {
        return reason.to_owned();
    };
    let expected = match expected {
        "f32" | "f64" => "a number",
        "u32" | "u64" | "usize" => "a whole number, not negative",
        other => other,
    };
    format!("{found}expected {expected}")
}

/// A conversation that stood in the field `source`.
pub fn conversation(messages: Vec<WireMessage>, source: &str) -> Result<Prompt, Refusal> {
    if messages.is_empty() {
        return Err(Refusal::field(source, "must not be empty"));
    }
    let messages = messages.into_iter().enumerate().map(|(index, message)| {
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
