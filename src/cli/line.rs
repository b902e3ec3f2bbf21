//! A line of JSON, field by field. What is only handed on stays as it was written.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;

use crate::json::{Json, half_character};

/// An object's fields, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(Vec<(String, Json)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, {\"prompt\": …}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        json.deserialize_map(Object)
    }
}

impl Fields {
    /// Those of a line, or why it has none.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        if let Some(at) = line.iter().position(|&byte| byte == 0) {
            let column = at + 1;
            return Err(format!(
                "has a NUL byte at column {column}, as text in UTF-16 has; convert it to UTF-8"
            ));
        }
        let text = std::str::from_utf8(line).map_err(|error| {
            let column = error.valid_up_to() + 1;
            format!("is not UTF-8 from column {column} on; convert the file to UTF-8")
        })?;
        if text.trim_start().starts_with('[') {
            return Err("must be an object, not a list".into());
        }
        serde_json::from_str(text).map_err(|error| {
            let found = no_text(text).or_else(|| not_a_number(text));
            match error.classify() {
                Category::Data => in_line(&error),
                _ => found.unwrap_or_else(|| format!("is not JSON: {}", in_line(&error))),
            }
        })
    }

    /// What is wrong with fields of `line` that are JSON all the same.
    pub fn check(&self, line: &[u8]) -> Result<(), String> {
        if let Some(reason) = std::str::from_utf8(line).ok().and_then(no_text) {
            return Err(reason);
        }
        let mut seen = HashSet::new();
        match self.names().find(|&name| !seen.insert(name)) {
            Some(name) => Err(format!("has `{name}` twice")),
            None => Ok(()),
        }
    }

    /// The line's id, if it has one.
    pub fn id(&self) -> Result<Option<Json>, String> {
        let Some(id) = self.find("id").filter(|id| !id.is_null()) else { return Ok(None) };
        if id.is_number() || id.string().is_some() {
            Ok(Some(id.clone()))
        } else {
            Err("id must be a string or a number".into())
        }
    }

    fn find(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// What a field says; `null` says nothing.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(value) = self.find(name).filter(|value| !value.is_null()) else { return Ok(None) };
        serde_json::from_str(value.text()).map(Some).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            let colon = if reason.starts_with("must ") { "" } else { ":" };
            format!("`{name}`{colon} {reason}")
        })
    }

    /// The same of a field that must be there.
    pub fn require<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        self.get(name)?.ok_or_else(|| {
            let names: Vec<String> = self.names().take(8).map(|name| format!("`{name}`")).collect();
            match &names[..] {
                [] => format!("`{name}` is missing"),
                names => format!("`{name}` is missing; there is {}", names.join(", ")),
            }
        })
    }

    /// The fields' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// All but those of these names.
    pub fn without(mut self, names: &[&str]) -> Self {
        self.0.retain(|(name, _)| !names.contains(&name.as_str()));
        self
    }

    /// The name of a field in which the two differ.
    pub fn difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let longest = self.0.len().max(other.0.len());
        let differs = (0..longest).find(|&at| self.0.get(at) != other.0.get(at))?;
        self.0.get(differs).or(other.0.get(differs)).map(|(name, _)| name.as_str())
    }
}

/// A JSON line with its line break.
pub fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain data becomes JSON");
    line.push(b'\n');
    line
}

/// The same of an object whose own fields are followed by `others`.
pub fn json_line_with(own: &impl Serialize, others: &Fields) -> Vec<u8> {
    let mut line = json_line(own);
    if others.0.is_empty() {
        return line;
    }
    line.truncate(line.len() - "}\n".len());
    for (name, value) in &others.0 {
        line.push(b',');
        line.extend(serde_json::to_vec(name).expect("a string becomes JSON"));
        line.push(b':');
        line.extend(value.text().as_bytes());
    }
    line.extend(b"}\n");
    line
}

/// Whether a text is JSON.
pub fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

/// serde_json counts lines too, always 1 here.
fn in_line(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.replace(" at line 1 column", " at column");
    message.replace("line 1 column", "column")
}

/// Says where a string is no text.
fn no_text(text: &str) -> Option<String> {
    let (at, escape) = half_character(text)?;
    let column = at + 1;
    Some(format!(
        "holds {escape} at column {column}, half of a character (a lone surrogate) and no text; take it \
         out, or write the whole character"
    ))
}

/// Says where a number stands that Python's json writes and JSON does not know.
fn not_a_number(text: &str) -> Option<String> {
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let closes = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            })?;
            at += end + 2;
            continue;
        }
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        if let name @ ("NaN" | "Infinity" | "-Infinity") = &rest[..end] {
            let column = at + 1;
            return Some(format!(
                "is not JSON: {name} at column {column}, which Python's json writes and JSON does not \
                 know; write null, or leave the field out"
            ));
        }
        at += end.max(first.len_utf8());
    }
    None
}
