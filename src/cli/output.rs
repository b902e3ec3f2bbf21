//! Lines of JSON out: in input order, whole lines only, and nothing twice after a restart.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::input::Item;
use super::line::json_line;
use super::resume::{self, Kept};
use super::stdout::STDOUT;
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
    trace: Option<Output>,
    /// The next answer to be written.
    next: usize,
    waiting: BTreeMap<usize, Lines>,
}

struct Lines {
    answer: Vec<u8>,
    trace: Vec<u8>,
}

struct Output {
    path: PathBuf,
    writer: Box<dyn Write + Send>,
}

impl Output {
    /// Whole lines in one write, so that a kill cannot leave half a line but at a page's edge,
    /// which `--resume` mends.
    fn write(&mut self, lines: &[u8]) -> Result<()> {
        let written = self.writer.write_all(lines).and_then(|()| self.writer.flush());
        written.map_err(Error::io("write to", &self.path))
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
        let create = |advice| move |path| Created::open(path, target.resume, advice);
        let advice = "go on with it by --resume, or name another file";
        let mut output = target.output.map(create(advice)).transpose()?;
        // Its output is a new one here: there is nothing to go on with.
        let mut trace = target.trace.map(create("name another file, or remove it")).transpose()?;
        let kept = match &mut output {
            Some(output) => begin(output, target, items)?,
            None => Kept::default(),
        };
        let steps = match (&mut trace, target.output) {
            (Some(Created { path, file, .. }), Some(output)) => {
                resume::steps(path, file, output, items, &kept)?
            }
            _ => 0,
        };
        for (created, bytes) in [(&mut output, kept.bytes), (&mut trace, steps)] {
            if let Some(Created { path, file, .. }) = created {
                resume::cut(path, file, bytes)?;
            }
        }
        let stdout = || Output { path: STDOUT.into(), writer: Box::new(std::io::stdout()) };
        let output = output.map_or_else(stdout, Created::into_output);
        let (trace, waiting) = (trace.map(Created::into_output), BTreeMap::new());
        Ok((Self { output, trace, next: kept.finished, waiting }, kept))
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
            self.next += 1;
        }
        Ok(())
    }
}

/// True for `-`, which stands for stdout.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A file that is open for writing, and locked against a second process.
struct Created {
    path: PathBuf,
    file: File,
    undo: Undo,
}

/// Removes a file that was not there before, unless it is kept.
struct Undo(Option<PathBuf>);

impl Drop for Undo {
    fn drop(&mut self) {
        // What cannot be removed is empty, and whoever finds it is told that it exists.
        let _ = self.0.take().map(std::fs::remove_file);
    }
}

impl Created {
    /// Opens a file that must be new unless `resume`; `advice` is for whoever has it already.
    fn open(path: &Path, resume: bool, advice: &str) -> Result<Self> {
        let refuse = |action, reason: &str| Error::io(action, path)(std::io::Error::other(reason));
        if path.is_dir() {
            return Err(refuse("create", "it is a folder; name a file"));
        }
        let new = !path.exists();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(resume).create_new(!resume);
        let file = options.open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => refuse("create", &format!("it exists; {advice}")),
            _ => Error::io("create", path)(source),
        })?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(refuse("write to", "another process is writing to it"));
        }
        let path = path.to_owned();
        Ok(Self { undo: Undo(new.then(|| path.clone())), path, file })
    }

    /// The file, which stays.
    fn into_output(self) -> Output {
        let Self { path, file, mut undo } = self;
        undo.0 = None;
        Output { path, writer: Box::new(file) }
    }
}

/// Holds an output that goes on to the settings that it was begun with, or writes those of a new one.
/// What of it stays.
fn begin(
    Created { path, file, .. }: &mut Created,
    target: &Target<'_>,
    items: &[Item<Prompt>],
) -> Result<Kept> {
    if target.resume && file.metadata().is_ok_and(|data| data.len() > 0) {
        resume::check_settings(path, &target.settings)?;
        return resume::answers(path, file, items, target.retry_failed);
    }
    let mut text = serde_json::to_string_pretty(&target.settings).expect("plain JSON");
    text.push('\n');
    let settings_path = resume::settings_path(path);
    std::fs::write(&settings_path, text).map_err(Error::io("write to", settings_path))?;
    Ok(Kept::default())
}
