//! The work that cannot be avoided: bytes to read and operations to do.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::engine::Config;

/// What has to be moved and computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Bytes from memory, or to it.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
}

/// Rows that run through a model together.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Tokens.
    pub rows: usize,
    /// Rows of which logits are wanted.
    pub head_rows: usize,
    /// Positions that the rows attend to, added up.
    pub attended: usize,
    /// Positions among them that are different ones: what is shared is read once.
    pub distinct: usize,
}

impl Work {
    /// One pass through a model: all weights once, in bf16, and all keys and values once.
    pub fn pass(config: &Config, pass: Pass) -> Self {
        let Pass { rows, head_rows, attended, distinct } = pass;
        let head = if head_rows > 0 { config.head_parameters() } else { 0 };
        let attention = 4 * config.layers * config.heads.query_width() * attended;
        let matmuls = 2 * (rows * config.layer_parameters() + head_rows * head);
        let weights = 2 * (config.layer_parameters() + head);
        Self {
            bytes: (weights + distinct * config.kv_bytes_per_token()) as f64,
            operations: (matmuls + attention) as f64,
        }
    }

    /// `texts` texts of `len` tokens from their beginning; with logits or without.
    pub fn texts(config: &Config, texts: usize, len: usize, head: bool) -> Self {
        let rows = texts * len;
        let head_rows = if head { rows } else { 0 };
        Self::pass(config, Pass { rows, head_rows, attended: rows * (len + 1) / 2, distinct: rows })
    }
}

/// Searches that run together, all alike, none of them ending early, with successors that differ from
/// their first token on.
#[derive(Clone, Copy)]
pub struct SearchCost<'a> {
    pub machine: &'a Machine,
    pub base: &'a Config,
    /// Tuned and untuned.
    pub guide: [&'a Config; 2],
    pub searches: usize,
    pub prompt: usize,
    pub beam_width: usize,
    pub candidates: usize,
}

impl SearchCost<'_> {
    /// Seconds to run the prompts.
    pub fn prefill(&self) -> f64 {
        let models = self.guide.iter().chain([&self.base]);
        let works = models.map(|config| Work::texts(config, self.searches, self.prompt - 1, false));
        works.map(|work| self.machine.seconds(work)).sum()
    }

    /// Seconds to add `len` tokens to candidates that have `done`.
    pub fn expand(&self, done: usize, len: usize) -> f64 {
        let step = |token| Pass {
            rows: self.rows(done, token),
            head_rows: self.rows(done, token),
            attended: self.attended(done, token),
            distinct: self.distinct(done, token),
        };
        let works = (0..len).map(|token| Work::pass(self.base, step(token)));
        works.map(|work| self.machine.seconds(work)).sum()
    }

    /// Seconds to score them.
    pub fn score(&self, done: usize, len: usize) -> f64 {
        let rows = self.rows_scored(done, len);
        let attended = (0..len).map(|token| self.attended(done, token)).sum();
        let pass = Pass { rows, head_rows: rows, attended, distinct: self.distinct(done, len - 1) };
        self.guide.iter().map(|config| self.machine.seconds(Work::pass(config, pass))).sum()
    }

    /// Rows that score `len` tokens of each candidate.
    pub fn rows_scored(&self, done: usize, len: usize) -> usize {
        (0..len).map(|token| self.rows(done, token)).sum()
    }

    /// Rows that are run for token `token` of all candidates' chunks: before the first one the
    /// candidates still are their beams, or the prompt.
    fn rows(&self, done: usize, token: usize) -> usize {
        self.searches
            * match (done, token) {
                (0, 0) => 1,
                (_, 0) => self.beam_width,
                _ => self.candidates,
            }
    }

    /// Positions that these rows attend to, added up.
    fn attended(&self, done: usize, token: usize) -> usize {
        self.rows(done, token) * (self.prompt + done + token)
    }

    /// Cached positions while candidates are `len` tokens beyond the `done` ones of their beams.
    fn distinct(&self, done: usize, len: usize) -> usize {
        self.searches * (self.prompt + self.beam_width * done + self.candidates * len)
    }
}

/// Where chunks of `chunk_len` begin and how long they are, up to `max_new_tokens`.
pub fn chunks(chunk_len: usize, max_new_tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = (0..max_new_tokens).step_by(chunk_len);
    starts.map(move |done| (done, chunk_len.min(max_new_tokens - done)))
}
