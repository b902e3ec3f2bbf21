//! Floor 3: a transformer over a paged, forkable K/V cache.
//!
//! An [`Engine`] is one model with its cache and all the device memory that it will ever need.
//! There is one way to run tokens, a batch of [`Span`]s, and four things to want of it: nothing
//! ([`Engine::prefill`]), log-probabilities of given tokens ([`Engine::logprobs`]), the next
//! tokens ([`Engine::sample`]) or the logits that they would be drawn from ([`Engine::logits`]).
//! A row's result does not depend on what else is in the batch.

mod batch;
pub mod config;
mod gpt2;
mod llama;
pub mod model;
mod pair;
mod tensors;
mod transformer;

use std::ops::Range;
use std::sync::Arc;

pub use batch::Span;
pub use config::Config;
pub use model::Model;
pub use pair::Pair;

use crate::backend::{Backend, PAGE_LEN, PoolShape, SampleRow};
use crate::error::Result;
use crate::kv_cache::PageCopy;
use crate::tensor::bf16;
use batch::Batch;
use config::Position;
use transformer::{Activations, Pool};

/// How much an engine can take at once. Everything is allocated from these when it is built.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pages of the K/V cache.
    pub pages: usize,
    /// Rows that run together; larger batches are cut up.
    pub rows: usize,
    /// Rows whose logits exist at the same time; more are sampled in turns.
    pub logit_rows: usize,
}

/// One model, its cache, and its scratch memory.
pub struct Engine<B: Backend> {
    backend: Arc<B>,
    model: Model<B>,
    limits: Limits,
    /// Positions that a sequence can have: what the model knows and the cache can hold.
    context: usize,
    pool: Pool<B>,
    batch: Batch<B>,
    activations: Activations<B>,
    /// Rows of the batch that are read out, `[rows]`.
    picks: B::Buffer<u32>,
    /// Their residual stream, `[rows, width]`.
    picked: B::Buffer<f32>,
    /// The same after the final norm, `[rows, width]`.
    normed: B::Buffer<bf16>,
    /// `[logit_rows, vocab]`
    logits: B::Buffer<f32>,
    /// Tokens asked for, or drawn, `[rows]`.
    tokens: B::Buffer<u32>,
    /// `[rows]`
    logprobs: B::Buffer<f32>,
    /// Rows run since the engine was built.
    rows_run: u64,
}

impl<B: Backend> Engine<B> {
    /// Allocates all that `model` needs within `limits`.
    pub fn new(backend: Arc<B>, model: Model<B>, limits: Limits) -> Result<Self> {
        let config = &model.config;
        assert!(limits.logit_rows <= limits.rows, "logits are of rows that were run");
        let context = config.context.min(limits.pages * PAGE_LEN);
        let shape = PoolShape { layers: config.layers, pages: limits.pages, heads: config.heads };
        let cos_sin = match &config.position {
            Position::Learned => backend.alloc(0)?,
            Position::Rotary(frequencies) => {
                let table = cos_sin_table(frequencies, context);
                let mut buffer = backend.alloc(table.len())?;
                backend.upload(&table, &mut buffer)?;
                buffer
            }
        };
        Ok(Self {
            context,
            pool: Pool { shape, data: backend.alloc(shape.len())?, cos_sin },
            batch: Batch::new(&*backend, limits.rows, context.div_ceil(PAGE_LEN))?,
            activations: Activations::new(&*backend, config, limits.rows)?,
            picks: backend.alloc(limits.rows)?,
            picked: backend.alloc(limits.rows * config.width)?,
            normed: backend.alloc(limits.rows * config.width)?,
            logits: backend.alloc(limits.logit_rows * config.vocab)?,
            tokens: backend.alloc(limits.rows)?,
            logprobs: backend.alloc(limits.rows)?,
            rows_run: 0,
            backend,
            model,
            limits,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// What the engine was built for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Positions that a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Rows (tokens) run since the engine was built.
    pub fn rows_run(&self) -> u64 {
        self.rows_run
    }

    /// Runs the copies that [`crate::kv_cache::Sequence::append`] asked for.
    pub fn copy_pages(&mut self, copies: &[PageCopy]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        let copies: Vec<_> = copies.iter().map(|copy| (copy.from, copy.to)).collect();
        self.backend.copy_pages(self.pool.shape, &copies, &mut self.pool.data)
    }

    /// Runs the spans for their keys and values alone.
    pub fn prefill(&mut self, spans: &[Span<'_>]) -> Result<()> {
        self.run(spans, |_, _| Ok(()))
    }

    /// For each row of the spans, in order, log p(target | all tokens up to and with that row).
    /// `targets` has one token per row.
    pub fn logprobs(&mut self, spans: &[Span<'_>], targets: &[u32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; targets.len()];
        self.run(spans, |engine, window| {
            let rows = window.len();
            let backend = engine.backend.clone();
            engine.model.final_norm(&*backend, rows, &engine.activations.x, &mut engine.normed)?;
            backend.upload(&targets[window.clone()], &mut engine.tokens)?;
            backend.logprobs(
                rows,
                &engine.normed,
                &engine.model.head,
                &engine.tokens,
                &mut engine.logprobs,
            )?;
            backend.download(&engine.logprobs, &mut out[window])
        })?;
        Ok(out)
    }

    /// Draws the token after each span: one [`SampleRow`] per span.
    pub fn sample(&mut self, spans: &[Span<'_>], rows: &[SampleRow]) -> Result<Vec<u32>> {
        assert_eq!(spans.len(), rows.len(), "one draw per span");
        let mut tokens = Vec::with_capacity(rows.len());
        for (spans, rows) in
            spans.chunks(self.limits.logit_rows).zip(rows.chunks(self.limits.logit_rows))
        {
            self.logits(spans)?;
            tokens.extend(self.sample_logits(rows)?);
        }
        Ok(tokens)
    }

    /// Computes the logits after each of at most `logit_rows` spans and keeps them for
    /// [`Engine::sample_logits`], [`Engine::add_guidance`] and [`Engine::read_logits`].
    pub fn logits(&mut self, spans: &[Span<'_>]) -> Result<()> {
        assert!(spans.len() <= self.limits.logit_rows, "more rows than logits");
        let last_rows: Vec<usize> = spans
            .iter()
            .scan(0, |end, span| {
                *end += span.tokens.len();
                Some(*end - 1)
            })
            .collect();
        // The rows wanted may be spread over several windows: gather them first, so that the
        // head runs once.
        let mut first = 0;
        let mut picked: Vec<f32> = Vec::new();
        let width = self.model.config.width;
        let single = spans.iter().map(|span| span.tokens.len()).sum::<usize>() <= self.limits.rows;
        self.run(spans, |engine, window| {
            let picks: Vec<u32> = last_rows[first..]
                .iter()
                .take_while(|row| window.contains(row))
                .map(|row| (row - window.start) as u32)
                .collect();
            first += picks.len();
            let backend = &engine.backend;
            backend.upload(&picks, &mut engine.picks)?;
            backend.gather_rows(
                picks.len(),
                width,
                &engine.picks,
                &engine.activations.x,
                &mut engine.picked,
            )?;
            if !single {
                let mut rows = vec![0.0; picks.len() * width];
                backend.download(&engine.picked, &mut rows)?;
                picked.extend(rows);
            }
            Ok(())
        })?;
        if !single {
            self.backend.upload(&picked, &mut self.picked)?;
        }
        let rows = spans.len();
        self.model.final_norm(&*self.backend, rows, &self.picked, &mut self.normed)?;
        self.backend.logits(rows, &self.normed, &self.model.head, &mut self.logits)
    }

    /// Adds `weight · (log softmax(tuned) − log softmax(untuned))` to the logits kept by
    /// [`Engine::logits`], from the logits that the pair's engines kept for the same rows.
    pub fn add_guidance(
        &mut self,
        rows: usize,
        weight: f32,
        tuned: &Engine<B>,
        untuned: &Engine<B>,
    ) -> Result<()> {
        let vocab = self.model.config.vocab;
        let logits = &mut self.logits;
        self.backend.add_guidance(rows, vocab, weight, &tuned.logits, &untuned.logits, logits)
    }

    /// Draws one token per row from the logits kept by [`Engine::logits`].
    pub fn sample_logits(&mut self, rows: &[SampleRow]) -> Result<Vec<u32>> {
        let vocab = self.model.config.vocab;
        self.backend.sample(rows, vocab, &self.logits, &mut self.tokens)?;
        let mut tokens = vec![0; rows.len()];
        self.backend.download(&self.tokens, &mut tokens)?;
        Ok(tokens)
    }

    /// The logits kept by [`Engine::logits`], `[rows, vocab]`.
    pub fn read_logits(&self, rows: usize) -> Result<Vec<f32>> {
        let mut out = vec![0.0; rows * self.model.config.vocab];
        self.backend.download(&self.logits, &mut out)?;
        Ok(out)
    }

    /// Runs all rows of `spans`, at most `limits.rows` at a time, and shows `read` each window
    /// of them while its activations are there.
    fn run(
        &mut self,
        spans: &[Span<'_>],
        mut read: impl FnMut(&mut Self, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        for first in (0..rows).step_by(self.limits.rows) {
            let window = first..rows.min(first + self.limits.rows);
            self.batch.fill(&*self.backend, spans, window.clone())?;
            self.rows_run += window.len() as u64;
            self.model.forward(
                &*self.backend,
                &self.batch,
                &mut self.pool,
                &mut self.activations,
            )?;
            read(self, window)?;
        }
        Ok(())
    }
}

/// `[positions, head_dim]`: the cosines of a position's angles, then their sines, computed in
/// f32 as transformers does.
fn cos_sin_table(frequencies: &[f32], positions: usize) -> Vec<f32> {
    (0..positions)
        .flat_map(|position| {
            let angles = frequencies.iter().map(move |f| position as f32 * f);
            angles.clone().map(f32::cos).chain(angles.map(f32::sin))
        })
        .collect()
}
