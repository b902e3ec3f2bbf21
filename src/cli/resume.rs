//! What an earlier run has left, and what of it stays when `--resume` goes on.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::input::Item;
use super::line::Fields;
use super::output::ANSWER;
use crate::error::{Error, Result};
use crate::json::Json;
use crate::text::Prompt;

/// What stays of an output: whole lines, those of the first items.
#[derive(Default)]
pub struct Kept {
    /// Items that have their lines.
    pub finished: usize,
    /// Those of them whose lines hold errors, in order.
    pub failed: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// A step in a trace, as far as it says to which search it belongs and whether it is the last.
#[derive(Deserialize)]
struct Step {
    id: Json,
    line: usize,
    chunk: usize,
    candidates: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Candidate {
    rank: Option<usize>,
    finish_reason: Option<String>,
}

impl Step {
    /// Whether all that lived on had ended, and with them the search.
    fn is_last(&self) -> bool {
        let mut kept = self.candidates.iter().filter(|candidate| candidate.rank.is_some());
        kept.all(|candidate| candidate.finish_reason.is_some())
    }
}

/// Beside the output, what it was made with.
pub fn settings_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".settings.json");
    name.into()
}

/// Whether a file's bytes are settings of a run, of this version of trimtab or of another.
pub fn are_settings(bytes: &[u8]) -> bool {
    let settings: Option<Map<String, Value>> = serde_json::from_slice(bytes).ok();
    settings.is_some_and(|settings| {
        settings.get("version").is_some_and(Value::is_string)
            && settings.keys().any(|name| name.starts_with("--"))
    })
}

/// Refuses to go on with an output that was made in another way.
pub fn check_settings(output: &Path, now: &Value) -> Result<()> {
    let path = &settings_path(output);
    let refuse = |reason: String| Error::flag("--resume", reason);
    let text = std::fs::read_to_string(path).map_err(|error| {
        refuse(format!(
            "cannot go on with {}: what it was made with is not in {}: {error}",
            output.display(),
            path.display()
        ))
    })?;
    let before: Value = serde_json::from_str(&text)
        .map_err(|error| refuse(format!("finds no settings in {}: {error}", path.display())))?;
    let (Value::Object(before), Value::Object(now)) = (&before, now) else {
        return Err(refuse(format!("finds no settings in {}", path.display())));
    };
    let unknown = |a: &Map<_, _>, b: &Map<_, _>| a.keys().any(|key| !b.contains_key(key));
    if unknown(before, now) || unknown(now, before) {
        return Err(refuse(format!(
            "cannot go on with {}: {} was written by another version of trimtab, which knew other \
             settings; begin anew with another --output",
            output.display(),
            path.display()
        )));
    }
    match now.iter().find(|(key, value)| before.get(*key) != Some(value)) {
        None => Ok(()),
        Some((key, value)) => Err(refuse(format!(
            "cannot go on with {}: it was made with {key} = {}, not {value}",
            output.display(),
            before.get(key).unwrap_or(&Value::Null)
        ))),
    }
}

/// The answers in `file`, which must be those of the first items, without a torn line at the end; with
/// `retry`, without the first error and all that follows it.
pub fn answers(path: &Path, file: &mut File, items: &[Item<Prompt>], retry: bool) -> Result<Kept> {
    let mut kept = Kept::default();
    let mut retried = false;
    for (index, line) in whole_lines(path, file)?.into_iter().enumerate() {
        let refuse = |reason: &str| Error::Line {
            path: path.to_owned(),
            line: index + 1,
            reason: reason.into(),
        };
        let answer = Fields::parse(&line)
            .map_err(|_| refuse("is not an answer of trimtab; --resume cannot go on with it"))?;
        let Some(item) = items.get(index) else {
            return Err(refuse(
                "there are more answers than prompts; is it another prompts file's?",
            ));
        };
        let failed = answer.names().any(|name| name == "error");
        // A prompt that is tried again may have been mended, and have an id now.
        let mended = failed && retry;
        if !mended {
            let prompt: Option<Prompt> = answer.get("prompt").ok().flatten();
            let other_prompt = prompt.is_some() && prompt.as_ref() != item.content.as_ref().ok();
            let id: Option<Json> = answer.id().ok().flatten();
            if id != Some(item.id()) || other_prompt || prompt.is_none() && !failed {
                return Err(refuse("answers another prompt; is it another prompts file's?"));
            }
            let handed_on = answer.without(ANSWER);
            if let Some(name) = handed_on.difference(&item.fields) {
                let reason =
                    format!("the prompt has another `{name}`; is it another prompts file's?");
                return Err(refuse(&reason));
            }
        }
        retried |= mended;
        if !retried {
            kept.bytes += line.len() as u64;
            kept.finished += 1;
            kept.failed.extend(failed.then_some(index));
        }
    }
    Ok(kept)
}

/// Bytes of a trace that belong to what stays of `output`: all steps of each answer, which must be there.
pub fn steps(
    path: &Path,
    file: &mut File,
    output: &Path,
    items: &[Item<Prompt>],
    kept: &Kept,
) -> Result<u64> {
    let mut bytes = 0;
    let mut lines = whole_lines(path, file)?.into_iter();
    // A prompt that could not be answered has no steps.
    let answered = (0..kept.finished).filter(|index| kept.failed.binary_search(index).is_err());
    for item in answered.map(|index| &items[index]) {
        for chunk in 0.. {
            let line = lines.next().unwrap_or_default();
            let own =
                |step: &Step| step.line == item.line && step.id == item.id() && step.chunk == chunk;
            let step: Option<Step> = serde_json::from_slice(&line).ok().filter(own);
            let Some(step) = step else {
                return Err(Error::flag(
                    "--trace",
                    format!(
                        "cannot go on with {}: it lacks steps of prompt {}, which is answered in {}; \
                         leave out --trace, or begin both anew under other names",
                        path.display(),
                        item.id(),
                        output.display()
                    ),
                ));
            };
            bytes += line.len() as u64;
            if step.is_last() {
                break;
            }
        }
    }
    Ok(bytes)
}

/// All lines that end with a line break, with it.
fn whole_lines(path: &Path, file: &mut File) -> Result<Vec<Vec<u8>>> {
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        if line.last() != Some(&b'\n') {
            return Ok(lines);
        }
        lines.push(line);
    }
}
