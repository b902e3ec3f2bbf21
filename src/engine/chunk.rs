//! Writing a chunk: rows that are continued token by token, the host looking on only at its end.
//!
//! [`Engine::begin`], then for each step [`Engine::next_logits`], [`Engine::draw`] and
//! [`Engine::advance`], then [`Engine::drawn`]. A pair that shifts the logits (emulated
//! fine-tuning) begins the same rows, gives its logits to [`Engine::add_guidance`] and follows the
//! tokens that the base model drew ([`Engine::follow`]). Each model has a queue of its own; they
//! meet in these two.

use super::{Engine, Pair, Span};
use crate::backend::{Backend, SampleRow};
use crate::error::Result;

impl<B: Backend> Engine<B> {
    /// Rows stand still once one of these tokens was drawn for them. Part of building the engine: at
    /// first there are none.
    pub fn end_at(&mut self, ends: &[u32]) -> Result<()> {
        self.ends = self.backend.alloc(ends.len())?;
        self.backend.upload(ends, &mut self.ends)
    }

    /// Lays out one row per span, each of one token and a sequence with room for `steps` tokens
    /// from there on; at most `logit_rows` spans and `steps_per_look` steps.
    pub fn begin(&mut self, spans: &[Span<'_>], steps: usize) -> Result<()> {
        assert!(spans.len() <= self.limits.logit_rows, "more rows than logits");
        assert!((1..=self.backend.steps_per_look()).contains(&steps), "{steps} steps");
        assert!(spans.iter().all(|span| span.tokens.len() == 1), "one token per span");
        assert!(spans.iter().all(|span| span.common.is_none()), "a row per span");
        self.batch.fill(&*self.backend, spans, 0..spans.len(), steps - 1)
    }

    /// Runs the rows' tokens and computes the logits of the next ones.
    pub fn next_logits(&mut self) -> Result<()> {
        let (backend, rows) = (self.backend.clone(), self.batch.rows);
        self.rows_run += rows as u64;
        self.model.forward(&*backend, &self.batch, &mut self.pool, &mut self.activations)?;
        self.model.final_norm(&*backend, rows, &self.activations.x, &mut self.normed)?;
        self.reclaim()?;
        backend.logits(rows, &self.normed, &self.model.head, &mut self.logits)
    }

    /// Adds `weight · (log softmax(tuned) − log softmax(untuned))` to the logits, from those that
    /// `pair` computed for the same rows. Tokens that the pair cannot follow ([`Pair::rows`]) are not drawn.
    pub fn add_guidance(&mut self, weight: f32, pair: &mut Pair<B>) -> Result<()> {
        let Pair { tuned, untuned, .. } = pair;
        tuned.lend(&self.backend)?;
        untuned.lend(&self.backend)?;
        let (rows, logits) = (self.batch.rows, &mut self.logits);
        self.backend.add_guidance(rows, weight, &tuned.logits, &untuned.logits, logits)
    }

    /// Draws a token for each of `rows`, at most `logit_rows`, from the logits of the row that it
    /// names. Where these are not one for each row, [`Engine::begin`] lays out as many before
    /// [`Engine::advance`].
    pub fn draw(&mut self, rows: &[SampleRow]) -> Result<()> {
        assert!(rows.len() <= self.limits.logit_rows, "more draws than there is room for");
        assert!(rows.iter().all(|row| (row.logits as usize) < self.batch.rows), "rows with logits");
        self.reclaim()?;
        self.backend.sample(rows, &self.logits, &mut self.tokens)
    }

    /// Goes on to the tokens of step `step`, which were drawn here.
    pub fn advance(&mut self, step: usize) -> Result<()> {
        let Self { backend, batch, tokens, ends, history, .. } = self;
        batch.advance(&**backend, step, tokens, ends, history)
    }

    /// Goes on to the tokens of step `step`, which `leader` drew for the same rows.
    pub fn follow(&mut self, step: usize, leader: &mut Engine<B>) -> Result<()> {
        leader.lend(&self.backend)?;
        let Self { backend, batch, history, .. } = self;
        batch.advance(&**backend, step, &leader.tokens, &leader.ends, history)
    }

    /// The tokens drawn in the first `steps` steps, `[steps, rows]`; after one that ends a row that
    /// token over and over.
    pub fn drawn(&self, steps: usize) -> Result<Vec<u32>> {
        let mut tokens = vec![0; steps * self.batch.rows];
        self.backend.download(&self.history, &mut tokens)?;
        Ok(tokens)
    }

    /// The rows' logits, `[rows, vocab]`.
    pub fn read_logits(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.batch.rows * self.logits.vocab];
        self.backend.download(&self.logits.values, &mut out)?;
        Ok(out)
    }
}
