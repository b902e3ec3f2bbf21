//! Lines of JSON out: in input order, whole lines only, and nothing twice after a restart.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::input::Item;
use super::stdout::STDOUT;
use crate::error::{Error, Result};
use crate::search::{Chunk, Outcome};
use crate::text::Prompt;

/// An answer.
#[derive(Serialize)]
pub struct Answer<'a> {
    pub id: &'a Value,
    pub prompt: &'a Prompt,
    pub response: String,
    pub gain: Option<f64>,
    pub logp_tuned: Option<f64>,
    pub logp_untuned: Option<f64>,
    pub tokens: usize,
    pub finish_reason: &'static str,
    pub seed: u64,
    pub method: &'a str,
}

impl<'a> Answer<'a> {
    /// From a search's outcome; without a guide there is no gain.
    pub fn new(
        id: &'a Value,
        prompt: &'a Prompt,
        outcome: &Outcome,
        guided: bool,
        seed: u64,
        method: &'a str,
    ) -> Self {
        let score = guided.then_some(outcome.score);
        Self {
            id,
            prompt,
            response: outcome.response.to_text(),
            gain: score.map(|score| score.gain),
            logp_tuned: score.map(|score| score.logp_tuned),
            logp_untuned: score.map(|score| score.logp_untuned),
            tokens: outcome.response.tokens.len(),
            finish_reason: outcome.finish.reason(),
            seed,
            method,
        }
    }
}

/// A prompt that could not be answered.
#[derive(Serialize)]
pub struct Failure<'a> {
    pub id: &'a Value,
    pub error: String,
}

/// One step of a search in a trace file.
#[derive(Serialize)]
struct TraceLine<'a> {
    id: &'a Value,
    line: usize,
    chunk: usize,
    #[serde(flatten)]
    content: &'a Chunk,
}

/// A JSON line with its line break.
pub fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain data becomes JSON");
    line.push(b'\n');
    line
}

/// A search's steps as lines of a trace file.
pub fn trace_lines(id: &Value, line: usize, trace: &[Chunk]) -> Vec<u8> {
    let lines = trace.iter().enumerate();
    lines.flat_map(|(chunk, content)| json_line(&TraceLine { id, line, chunk, content })).collect()
}

/// Where to write, and what must have been written there before.
pub struct Target<'a> {
    /// `--output`; stdout if none.
    pub output: Option<&'a Path>,
    /// `--trace`
    pub trace: Option<&'a Path>,
    /// `--resume`
    pub resume: bool,
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
    /// Opens the outputs. Returns how many of `items`, from the first on, are there already. Nothing is
    /// left behind where one of them cannot be had.
    pub fn open(target: &Target<'_>, items: &[Item<Prompt>]) -> Result<(Self, usize)> {
        if target.trace.is_some_and(is_stdout) {
            return Err(Error::flag("--trace", "needs a file: answers may go to stdout"));
        }
        let taken = target.output.map(|path| [path.to_owned(), settings_path(path)]);
        if target.trace.is_some_and(|path| taken.iter().flatten().any(|taken| taken == path)) {
            let reason = "must be another file than --output, and than its settings";
            return Err(Error::flag("--trace", reason));
        }
        if target.resume && target.output.is_none() {
            return Err(Error::flag("--resume", "needs --output, the file to go on with"));
        }
        let create = |path| Created::open(path, target.resume);
        let mut output = target.output.map(create).transpose()?;
        let mut trace = target.trace.map(create).transpose()?;
        let finished = match &mut output {
            Some(output) => begin(output, target, items)?,
            None => 0,
        };
        if let Some(trace) = &mut trace {
            cut_trace(trace, &items[..finished])?;
        }
        let stdout = || Output { path: STDOUT.into(), writer: Box::new(std::io::stdout()) };
        let output = output.map_or_else(stdout, Created::into_output);
        let (trace, waiting) = (trace.map(Created::into_output), BTreeMap::new());
        Ok((Self { output, trace, next: finished, waiting }, finished))
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

/// Beside the output, what it was made with.
fn settings_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".settings.json");
    name.into()
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
    /// Opens a file that must be new unless `resume`.
    fn open(path: &Path, resume: bool) -> Result<Self> {
        let refuse = |action, reason: &str| Error::io(action, path)(std::io::Error::other(reason));
        if path.is_dir() {
            return Err(refuse("create", "it is a folder; name a file"));
        }
        let new = !path.exists();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(resume).create_new(!resume);
        let file = options.open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => {
                refuse("create", "it exists; go on with it by --resume, or name another file")
            }
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
/// How many answers there are.
fn begin(
    Created { path, file, .. }: &mut Created,
    target: &Target<'_>,
    items: &[Item<Prompt>],
) -> Result<usize> {
    let settings_path = settings_path(path);
    if target.resume && file.metadata().is_ok_and(|data| data.len() > 0) {
        check_settings(path, &settings_path, &target.settings)?;
        return finished_answers(path, file, items);
    }
    let mut text = serde_json::to_string_pretty(&target.settings).expect("plain JSON");
    text.push('\n');
    std::fs::write(&settings_path, text).map_err(Error::io("write to", settings_path))?;
    Ok(0)
}

/// Refuses to go on with an output that was made in another way.
fn check_settings(output: &Path, path: &Path, now: &Value) -> Result<()> {
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
    let changed = now.iter().find(|(key, value)| before.get(*key) != Some(value));
    match changed {
        None => Ok(()),
        Some((key, value)) => Err(refuse(format!(
            "cannot go on with {}: it was made with {key} = {}, not {value}",
            output.display(),
            before.get(key).unwrap_or(&Value::Null)
        ))),
    }
}

/// Counts the answers in `file`, which must be those of the first items, and cuts a torn line.
fn finished_answers(path: &Path, file: &mut File, items: &[Item<Prompt>]) -> Result<usize> {
    let mut end = 0;
    let mut finished = 0;
    for line in whole_lines(path, file)? {
        let refuse = |reason: &str| Error::Line {
            path: path.to_owned(),
            line: finished + 1,
            reason: reason.into(),
        };
        let answer: Value = serde_json::from_slice(&line)
            .map_err(|_| refuse("is not an answer of trimtab; --resume cannot go on with it"))?;
        let Some(item) = items.get(finished) else {
            return Err(refuse(
                "there are more answers than prompts; is it another prompts file's?",
            ));
        };
        let prompt = item.content.as_ref().ok().map(|prompt| serde_json::json!(prompt));
        let other_prompt = answer.get("prompt").is_some_and(|p| Some(p) != prompt.as_ref());
        if answer.get("id") != Some(&item.id()) || other_prompt {
            return Err(refuse("answers another prompt; is it another prompts file's?"));
        }
        end += line.len() as u64;
        finished += 1;
    }
    cut(path, file, end)?;
    Ok(finished)
}

/// Cuts all lines of items that are not `finished` from a trace.
fn cut_trace(Created { path, file, .. }: &mut Created, finished: &[Item<Prompt>]) -> Result<()> {
    let done: std::collections::HashSet<usize> = finished.iter().map(|item| item.line).collect();
    let mut end = 0;
    for line in whole_lines(path, file)? {
        let traced: Option<Value> = serde_json::from_slice(&line).ok();
        let number = traced.as_ref().and_then(|line| line.get("line")).and_then(Value::as_u64);
        if !number.is_some_and(|number| done.contains(&(number as usize))) {
            break;
        }
        end += line.len() as u64;
    }
    cut(path, file, end)
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

fn cut(path: &Path, file: &mut File, end: u64) -> Result<()> {
    let cut = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
    cut.map(|_| ()).map_err(Error::io("write to", path))
}
