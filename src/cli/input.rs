//! Lines of JSON in.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::text::Prompt;

/// A line of a prompts file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptLine {
    prompt: Prompt,
    #[serde(default)]
    id: Option<Value>,
}

/// One prompt of a file, or why its line is none.
pub struct Item<T> {
    /// The line's number, from 1.
    pub line: usize,
    /// What it says.
    pub content: Result<T>,
}

/// A prompt and the id that its answer will carry.
pub struct PromptItem {
    pub id: Value,
    pub prompt: Prompt,
}

/// The lines of a JSONL file that are not blank.
pub fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<Item<T>>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let numbered = bytes.split(|&byte| byte == b'\n').enumerate();
    let filled = numbered.filter(|(_, line)| !line.trim_ascii().is_empty());
    Ok(filled
        .map(|(index, line)| {
            let line_number = index + 1;
            let content = serde_json::from_slice(line).map_err(|error| Error::Line {
                path: path.to_owned(),
                line: line_number,
                reason: in_line(&error.to_string()),
            });
            Item { line: line_number, content }
        })
        .collect())
}

/// serde_json counts lines too, always 1 here.
fn in_line(message: &str) -> String {
    message.replace(" at line 1 column", " at column").replace("line 1 column", "column")
}

/// The prompts of a file. An id is the line's number where it gives none.
pub fn prompts(path: &Path) -> Result<Vec<Item<PromptItem>>> {
    Ok(lines::<PromptLine>(path)?
        .into_iter()
        .map(|Item { line, content }| {
            let content = content.and_then(|PromptLine { prompt, id }| match id {
                None => Ok(PromptItem { id: line.into(), prompt }),
                Some(id @ (Value::String(_) | Value::Number(_))) => Ok(PromptItem { id, prompt }),
                Some(_) => Err(Error::Line {
                    path: path.to_owned(),
                    line,
                    reason: "id must be a string or a number".into(),
                }),
            });
            Item { line, content }
        })
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
