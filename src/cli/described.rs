//! A model's folder, described but not loaded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::models::Reading;
use crate::engine::config::EndToken;
use crate::engine::{Config, ModelFiles};
use crate::error::{Error, Result};
use crate::folder::{Notes, read_file};
use crate::hash::Fnv;
use crate::server::say;
use crate::text::Tokenizer;
use crate::weights::Checkpoint;

/// Files that a model's answers depend on beside its weights.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// The most bytes that any of them has.
const MAX_SMALL_BYTES: u64 = 1 << 30;

/// A name for what is in a model's folder, wherever it lies: of its small files and of
/// [`Checkpoint::fingerprint`].
pub fn fingerprint(folder: &Path) -> Result<String> {
    let mut hash = Fnv::seeded(Checkpoint::open(folder)?.fingerprint()?);
    for name in SMALL_FILES {
        if let Some(bytes) = read_file(&folder.join(name), MAX_SMALL_BYTES)? {
            hash.add(name.as_bytes());
            hash.add(&bytes);
        }
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// A model that has been described but not loaded.
pub struct Described {
    pub folder: PathBuf,
    pub config: Config,
    pub tokenizer: Arc<Tokenizer>,
    /// What ends a text, and the files that say so.
    pub ends: Vec<EndToken>,
    /// What its user should know.
    pub notes: Notes,
}

impl Described {
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            let reason = std::io::Error::other("it is not a folder with a model in it");
            return Err(Error::io("open", folder)(reason));
        }
        let ModelFiles { config, mut notes, .. } = ModelFiles::open(folder)?;
        // It may have ids beyond the model's rows: a text that has one is refused, not the model.
        let tokenizer = Arc::new(Tokenizer::open(folder)?);
        notes.extend(tokenizer.notes().clone());
        let has_row = |&token: &u32| (token as usize) < config.vocab;
        if let Some(token) = tokenizer.eos().filter(|token| !has_row(token)) {
            notes.warn(format!(
                "{}: the tokenizer's end token {token} has no row in the model, whose vocab_size is {}; \
                 it ends no text",
                folder.display(),
                config.vocab
            ));
        }
        let ends = config.ends.all(tokenizer.eos().filter(has_row));
        if differ(&ends) {
            notes.remark("its files differ in the tokens that end a text; each of them does");
        }
        Ok(Self { folder: folder.to_owned(), config, tokenizer, ends, notes })
    }

    /// The same, with its warnings written to stderr, each once in a process.
    pub fn warned(self) -> Self {
        static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in &self.notes.warnings {
            if said.insert(warning.clone()) {
                say(format_args!("warning: {warning}"));
            }
        }
        self
    }

    pub fn name(&self) -> String {
        self.folder.display().to_string()
    }

    /// Refuses flags with which it could read no prompt.
    pub fn check(&self, reading: &Reading) -> Result<()> {
        if reading.chat {
            self.tokenizer.require_chat_template()?;
        }
        self.tokenizer.encode("", reading.bos).map(drop)
    }

    /// The token that ends a text that this model reads.
    pub fn end(&self) -> Option<u32> {
        self.ends.first().map(|end| end.id)
    }

    /// Tokens that end this model's texts.
    pub fn eos(&self) -> Vec<u32> {
        self.ends.iter().map(|end| end.id).collect()
    }

    /// An end token, for people: `</s> (2), named by config.json`.
    pub fn shown(&self, end: &EndToken) -> String {
        let name = self.tokenizer.name(end.id).unwrap_or("?");
        format!("{name} ({}), named by {}", end.id, end.sources.join(" and "))
    }
}

/// Whether some file names other end tokens than another.
fn differ(ends: &[EndToken]) -> bool {
    let files: BTreeSet<_> = ends.iter().flat_map(|end| &end.sources).collect();
    ends.iter().any(|end| end.sources.len() < files.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_differ_that_name_one_token_each() {
        let end = |id, sources: &[&'static str]| EndToken { id, sources: sources.to_vec() };
        let (one, other) = ("config.json", "tokenizer_config.json");
        assert!(!differ(&[]) && !differ(&[end(1, &[one]), end(2, &[one])]));
        assert!(!differ(&[end(1, &[one, other]), end(2, &[one, other])]));
        assert!(differ(&[end(1, &[one]), end(2, &[other])]));
        assert!(differ(&[end(1, &[one, other]), end(2, &[one])]));
    }
}
