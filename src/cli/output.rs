//! Lines of JSON out: in input order, whole lines only, and nothing twice after a restart.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::input::Item;
use super::line::json_line;
use super::resume::{self, Kept};
use super::stdout;
use super::written::Written;
use crate::error::{Error, Result};
use crate::guide::GuideTokens;
use crate::json::Json;
use crate::search::{Chunk, Outcome, Settings};
use crate::text::Prompt;

/// The fields that an answer or an error may have, which no other field of a prompt can be called.
pub const ANSWER: &[&str] = &[
    "id",
    "prompt",
    "response",
    "gain",
    "logp_tuned",
    "logp_untuned",
    "tokens",
    "finish_reason",
    "eos",
    "stop_reason",
    "seed",
    "method",
    "guide_tokens",
    "token_ids",
    "error",
];

/// An answer.
#[derive(Serialize)]
pub struct Answer<'a> {
    pub id: &'a Json,
    pub prompt: &'a Prompt,
    pub response: String,
    pub gain: Option<f64>,
    pub logp_tuned: Option<f64>,
    pub logp_untuned: Option<f64>,
    pub tokens: usize,
    pub finish_reason: &'static str,
    /// Whether the guide scored an end-of-sequence token behind the response.
    pub eos: bool,
    /// The stop string behind the response, which the guide scored too.
    pub stop_reason: Option<String>,
    pub seed: u64,
    pub method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guide_tokens: Option<GuideTokens>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [u32]>,
}

/// What all answers of a run have in common.
pub struct Common<'a> {
    pub settings: &'a Settings,
    pub method: &'a str,
    /// What the guide reads, if there is one.
    pub guide: Option<GuideTokens>,
    /// `--token-ids`
    pub token_ids: bool,
}

impl<'a> Answer<'a> {
    /// From a search's outcome; without a guide there is no gain.
    pub fn new(
        id: &'a Json,
        prompt: &'a Prompt,
        outcome: &'a Outcome,
        common: &Common<'a>,
    ) -> Self {
        let Common { settings, method, guide, token_ids } = *common;
        let Outcome { response, finish, .. } = outcome;
        let score = guide.map(|_| outcome.score);
        Self {
            id,
            prompt,
            response: response.to_text(),
            gain: score.map(|score| score.gain),
            logp_tuned: score.map(|score| score.logp_tuned),
            logp_untuned: score.map(|score| score.logp_untuned),
            tokens: response.tokens.len(),
            finish_reason: finish.reason(),
            eos: settings.scores_end(*finish),
            stop_reason: response.stop_string(),
            seed: settings.seed,
            method,
            guide_tokens: guide.filter(|_| token_ids),
            token_ids: response.token_ids().filter(|_| token_ids),
        }
    }
}

/// A prompt that could not be answered.
#[derive(Serialize)]
pub struct Failure<'a> {
    pub id: &'a Json,
    pub error: String,
}

/// One step of a search in a trace file.
#[derive(Serialize)]
struct TraceLine<'a> {
    id: &'a Json,
    line: usize,
    chunk: usize,
    #[serde(flatten)]
    content: &'a Chunk,
}

/// A search's steps as lines of a trace file.
pub fn trace_lines(id: &Json, line: usize, trace: &[Chunk]) -> Vec<u8> {
    let lines = trace.iter().enumerate();
    let line = |(chunk, content)| json_line(&TraceLine { id, line, chunk, content });
    lines.flat_map(line).collect()
}

/// Where to write, and what must have been written there before.
pub struct Target<'a> {
    /// `--output`; stdout if none.
    pub output: Option<&'a Path>,
    /// `--trace`
    pub trace: Option<&'a Path>,
    /// `--resume`
    pub resume: bool,
    /// `--retry-failed`
    pub retry_failed: bool,
    /// All that determines the answers; kept beside the output.
    pub settings: Value,
}

/// Takes answers in any order and writes them in input order.
pub struct Sink {
    output: Output,
    trace: Option<Written>,
    /// What the output is made with, where that was written by this run.
    settings: Option<Written>,
    /// The next answer to be written.
    next: usize,
    waiting: BTreeMap<usize, Lines>,
}

struct Lines {
    answer: Vec<u8>,
    trace: Vec<u8>,
}

enum Output {
    Stdout,
    File(Written),
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => stdout::write_lines(lines),
            Self::File(file) => file.write(lines),
        }
    }
}

impl Sink {
    /// Opens the outputs. Returns which of `items`, from the first on, are there already. Nothing is
    /// left behind, and nothing is lost, where one of them cannot be had.
    pub fn open(target: &Target<'_>, items: &[Item<Prompt>]) -> Result<(Self, Kept)> {
        if target.trace.is_some_and(is_stdout) {
            return Err(Error::flag("--trace", "needs a file: answers may go to stdout"));
        }
        let taken = target.output.map(|path| [path.to_owned(), resume::settings_path(path)]);
        if target.trace.is_some_and(|path| taken.iter().flatten().any(|taken| taken == path)) {
            let reason = "must be another file than --output, and than its settings";
            return Err(Error::flag("--trace", reason));
        }
        if target.resume && target.output.is_none() {
            return Err(Error::flag("--resume", "needs --output, the file to go on with"));
        }
        if target.output.is_none() {
            stdout::check()?;
        }
        let open = |advice| move |path| Written::open(path, target.resume, advice);
        let advice = "go on with it by --resume, or name another file";
        let mut output = target.output.map(open(advice)).transpose()?;
        // Its output is a new one here: there is nothing to go on with.
        let mut trace = target.trace.map(open("name another file, or remove it")).transpose()?;
        let (kept, settings) = match &mut output {
            Some(output) => begin(output, target, items)?,
            None => (Kept::default(), None),
        };
        let steps = match (&mut trace, target.output) {
            (Some(Written { path, file, .. }), Some(output)) => {
                resume::steps(path, file, output, items, &kept)?
            }
            _ => 0,
        };
        for (written, bytes) in [(&mut output, kept.bytes), (&mut trace, steps)] {
            written.as_mut().map_or(Ok(()), |written| written.cut(bytes))?;
        }
        let output = output.map_or(Output::Stdout, Output::File);
        let (next, waiting) = (kept.finished, BTreeMap::new());
        Ok((Self { output, trace, settings, next, waiting }, kept))
    }

    /// Takes the answer of item `index`, counted from 0, and writes all that are due.
    pub fn push(&mut self, index: usize, answer: Vec<u8>, trace: Vec<u8>) -> Result<()> {
        self.waiting.insert(index, Lines { answer, trace });
        while let Some(lines) = self.waiting.remove(&self.next) {
            // The trace first: an answer that is there has its trace.
            if let Some(trace) = &mut self.trace {
                trace.write(&lines.trace)?;
            }
            self.output.write(&lines.answer)?;
            self.files().for_each(Written::keep);
            self.next += 1;
        }
        Ok(())
    }

    /// Waits until the disk has all lines. A run that ends without this, and before its first answer, leaves
    /// no file behind that it made.
    pub fn finish(self) -> Result<()> {
        let Self { output, trace, settings, .. } = self;
        let output = match output {
            Output::File(file) => Some(file),
            Output::Stdout => None,
        };
        // The trace and the settings first, as they are written.
        [trace, settings, output].into_iter().flatten().try_for_each(Written::finish)
    }

    fn files(&mut self) -> impl Iterator<Item = &mut Written> {
        let output = match &mut self.output {
            Output::File(file) => Some(file),
            Output::Stdout => None,
        };
        [output, self.trace.as_mut(), self.settings.as_mut()].into_iter().flatten()
    }
}

/// True for `-`, which stands for stdout.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Holds an output that goes on to the settings that it was begun with, or writes those of a new one.
/// What of it stays, and the settings that were written.
fn begin(
    Written { path, file, .. }: &mut Written,
    target: &Target<'_>,
    items: &[Item<Prompt>],
) -> Result<(Kept, Option<Written>)> {
    if target.resume && file.metadata().is_ok_and(|data| data.len() > 0) {
        resume::check_settings(path, &target.settings)?;
        return Ok((resume::answers(path, file, items, target.retry_failed)?, None));
    }
    let mut text = serde_json::to_string_pretty(&target.settings).expect("plain JSON");
    text.push('\n');
    let settings = Written::settings(&resume::settings_path(path), &text)?;
    Ok((Kept::default(), Some(settings)))
}
