//! Lines of JSON in.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use crate::error::{Error, Result};
use crate::text::Prompt;

/// A line of a prompts file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object {\"prompt\": …}")]
struct PromptLine {
    prompt: Prompt,
    /// Read from every line that has one: [`Item::own_id`].
    #[serde(rename = "id")]
    _id: Option<Value>,
}

/// One line of a file, or why it is none.
pub struct Item<T> {
    /// The line's number, from 1.
    pub line: usize,
    /// Its id, a string or a number, if it has one.
    pub own_id: Option<Value>,
    /// What it says.
    pub content: Result<T>,
}

impl<T> Item<T> {
    /// The id that names it: its own, or its number.
    pub fn id(&self) -> Value {
        self.own_id.clone().unwrap_or_else(|| self.line.into())
    }
}

/// What every line may have, whatever else is wrong with it.
#[derive(Deserialize)]
struct Named {
    id: Option<Value>,
}

/// The lines of a JSONL file that are not blank.
pub fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<Item<T>>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let numbered = bytes.split(|&byte| byte == b'\n').enumerate();
    let filled = numbered.filter(|(_, line)| !line.trim_ascii().is_empty());
    Ok(filled
        .map(|(index, text)| {
            let line = index + 1;
            let refuse = |reason| Error::Line { path: path.to_owned(), line, reason };
            // serde takes a list for an object: its fields in order.
            if text.trim_ascii_start().starts_with(b"[") {
                let content = Err(refuse("must be an object, not a list".into()));
                return Item { line, own_id: None, content };
            }
            let content = serde_json::from_slice(text);
            let content = content.map_err(|error| refuse(in_line(&error)));
            match serde_json::from_slice(text).ok().and_then(|Named { id }| id) {
                own_id @ (None | Some(Value::String(_) | Value::Number(_))) => {
                    Item { line, own_id, content }
                }
                Some(_) => {
                    let content = Err(refuse("id must be a string or a number".into()));
                    Item { line, own_id: None, content }
                }
            }
        })
        .collect())
}

/// What is wrong with a line; serde_json counts lines too, always 1 here.
fn in_line(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.replace(" at line 1 column", " at column");
    let message = message.replace("line 1 column", "column");
    match error.classify() {
        Category::Data => message,
        Category::Syntax | Category::Eof | Category::Io => format!("is not JSON: {message}"),
    }
}

/// The prompts of a file.
pub fn prompts(path: &Path) -> Result<Vec<Item<Prompt>>> {
    let prompt = |PromptLine { prompt, .. }| prompt;
    let items = lines(path)?.into_iter();
    Ok(items
        .map(|Item { line, own_id, content }| Item { line, own_id, content: content.map(prompt) })
        .collect())
}

/// `--shard I/N`: every N-th line, from the I-th on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, count)| {
            Some(Self { index: index.parse().ok()?, count: count.parse().ok()? })
        });
        parsed
            .filter(|shard| (1..=shard.count).contains(&shard.index))
            .ok_or_else(|| "must be I/N with I from 1 to N, such as 2/8".into())
    }
}

impl Shard {
    /// This shard's share.
    pub fn of<T>(self, items: Vec<T>) -> Vec<T> {
        items.into_iter().skip(self.index - 1).step_by(self.count).collect()
    }
}

/// The file named by a flag that also takes `-` for standard input.
pub fn path_or_stdin(path: &Path) -> PathBuf {
    if path.as_os_str() == "-" { "/dev/stdin".into() } else { path.to_owned() }
}
