//! Floor 3: a transformer over a paged, forkable K/V cache.
//!
//! An [`Engine`] is one model with its cache and all the device memory that it will ever need.
//! There is one way to run tokens, a batch of [`Span`]s, and three things to want of it: nothing
//! ([`Engine::prefill`]), log-probabilities of given tokens ([`Engine::logprobs`]), or the tokens
//! that come next ([`Engine::begin`] and what follows it in chunk.rs). A row's result does not
//! depend on what else is in the batch.

mod batch;
mod chunk;
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

use crate::backend::{Backend, PAGE_LEN, PoolShape};
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
    /// Rows whose logits exist at the same time; more are continued in turns.
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
    /// The residual stream after the final norm, `[rows, width]`.
    normed: B::Buffer<bf16>,
    /// `[logit_rows, vocab]`
    logits: B::Buffer<f32>,
    /// Tokens asked for, or drawn, `[rows]`.
    tokens: B::Buffer<u32>,
    /// Tokens drawn since the host last looked, `[steps_per_look, logit_rows]`.
    history: B::Buffer<u32>,
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
            normed: backend.alloc(limits.rows * config.width)?,
            logits: backend.alloc(limits.logit_rows * config.vocab)?,
            tokens: backend.alloc(limits.rows)?,
            history: backend.alloc(backend.steps_per_look() * limits.logit_rows)?,
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

    /// Tokens that [`Engine::begin`] can be asked for at once.
    pub fn steps_per_look(&self) -> usize {
        self.backend.steps_per_look()
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
            self.batch.fill(&*self.backend, spans, window.clone(), 0)?;
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
