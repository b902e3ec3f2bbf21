//! Lines of JSON in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::line::{Fields, is_json};
use super::output::ANSWER;
use crate::error::{Error, Result};
use crate::json::Json;
use crate::server::say;
use crate::text::Prompt;

/// One line of a file, or why it is none.
pub struct Item<T> {
    /// The line's number, from 1.
    pub line: usize,
    /// Its id, a string or a number, if it has one.
    pub own_id: Option<Json>,
    /// What it says.
    pub content: Result<T>,
    /// Its fields; of a prompt or a pair those that go on to what is written about it.
    pub fields: Fields,
}

impl<T> Item<T> {
    /// The id that names it: its own, or its number.
    pub fn id(&self) -> Json {
        self.own_id.clone().unwrap_or_else(|| self.line.into())
    }
}

/// The lines of a JSONL file that are not blank, as `read` understands them. A file in which it finds
/// nothing that is `what` ("a prompt") is an error by itself.
pub fn lines<T>(
    path: &Path,
    what: &str,
    read: impl Fn(&Fields) -> Result<T, String>,
) -> Result<Vec<Item<T>>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let refuse = |reason: &str| Error::io("read", path)(std::io::Error::other(reason));
    not_lines(bytes).map_or(Ok(()), |reason| Err(refuse(reason)))?;
    let numbered = bytes.split(|&byte| byte == b'\n').enumerate();
    let filled = numbered.filter(|(_, line)| !line.trim_ascii().is_empty());
    let items: Vec<Item<T>> = filled
        .map(|(index, text)| {
            let line = index + 1;
            let refuse = |reason| Error::Line { path: path.to_owned(), line, reason };
            let (fields, parsed) = match Fields::parse(text) {
                Ok(fields) => (fields, Ok(())),
                Err(reason) => (Fields::default(), Err(reason)),
            };
            let id = fields.id();
            let own_id = id.as_ref().ok().cloned().flatten();
            let sound = parsed.and_then(|()| fields.check(text));
            // Nothing is handed on that others could not read.
            let handed_on = sound.is_ok();
            let content = sound.and(id).and_then(|_| read(&fields)).map_err(refuse);
            let fields = if handed_on { fields } else { Fields::default() };
            Item { line, own_id, content, fields }
        })
        .collect();
    if items.is_empty() {
        say(format_args!("{}: there is no line in it", path.display()));
    }
    match &items[..] {
        [Item { line, content: Err(Error::Line { reason, .. }), .. }, ..]
            if items.iter().all(|item| item.content.is_err()) =>
        {
            let reason = match items.len() {
                1 => reason.clone(),
                count => format!("{reason}; none of the {count} lines is {what}"),
            };
            Err(Error::Line { path: path.to_owned(), line: *line, reason })
        }
        _ => Ok(items),
    }
}

/// Why a file as a whole holds no lines of JSON, and what to do about it.
fn not_lines(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Some("it is UTF-16; convert it with iconv -f UTF-16 -t UTF-8");
        }
        [0, _, ..] => return Some("it is UTF-16; convert it with iconv -f UTF-16BE -t UTF-8"),
        [_, 0, ..] => return Some("it is UTF-16; convert it with iconv -f UTF-16LE -t UTF-8"),
        _ => {}
    }
    let text = bytes.trim_ascii();
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let first_is_json = is_json(first);
    match text.first() {
        Some(b'[') if is_json(text) || text.ends_with(b"]") && !first_is_json => {
            Some("it is one JSON array; make a line of each of its objects with jq -c '.[]'")
        }
        Some(b'{') if !first_is_json && is_stream(text) => {
            Some("its objects do not stand on one line each; put them there with jq -c .")
        }
        _ => None,
    }
}

/// Whether a text is JSON values one behind the other.
fn is_stream(text: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    values.all(|value| value.is_ok())
}

/// The prompts of a file. Their other fields go on to the answers, but for those that an answer has itself.
pub fn prompts(path: &Path) -> Result<Vec<Item<Prompt>>> {
    let mut items = lines(path, "a prompt", |fields| fields.require("prompt"))?;
    let names: BTreeSet<&str> = items.iter().flat_map(|item| item.fields.names()).collect();
    let replaced: Vec<&str> = names
        .into_iter()
        .filter(|name| ANSWER.contains(name) && !["id", "prompt"].contains(name))
        .collect();
    if !replaced.is_empty() {
        let (path, names) = (path.display(), replaced.join("`, `"));
        say(format_args!("{path}: answers have `{names}` of their own, in place of the prompts'"));
    }
    for item in &mut items {
        item.fields = std::mem::take(&mut item.fields).without(ANSWER);
    }
    Ok(items)
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
