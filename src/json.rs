//! Floor 1: JSON values that are only handed on, as they were written.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// A JSON value as it was written: a number keeps its digits, however many they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Its text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The string that it is.
    pub fn string(&self) -> Option<String> {
        serde_json::from_str(self.text()).ok()
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.text() == "null"
    }

    /// Whether it is a number.
    pub fn is_number(&self) -> bool {
        self.text().starts_with(|first: char| first == '-' || first.is_ascii_digit())
    }
}

/// Equal are values that were written alike.
impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl From<usize> for Json {
    fn from(number: usize) -> Self {
        Self(to_raw_value(&number).expect("a number is JSON"))
    }
}

/// Where in a JSON text an escape stands that is one half of a character that takes two (a lone surrogate),
/// and the escape: such a text is JSON, and other programs need not be able to read it.
pub fn half_character(text: &str) -> Option<(usize, &str)> {
    let code = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    loop {
        at += text[at..].find('\\')?;
        at += match code(at) {
            Some(0xd800..=0xdbff) if matches!(code(at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => return Some((at, &text[at..at + 6])),
            // A backslash and what it escapes: a character of any length, or the text's end.
            _ => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
    }
}
