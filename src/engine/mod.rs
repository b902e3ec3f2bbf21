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
pub mod families;
pub mod fields;
mod files;
mod gpt2;
mod llama;
pub mod model;
mod pair;
mod rotary;
mod tensors;
mod transformer;

use std::ops::Range;
use std::sync::Arc;

pub use batch::{Common, Span};
pub use config::Config;
pub use files::ModelFiles;
pub use model::Model;
pub use pair::Pair;

use crate::backend::{Backend, Logits, PAGE_LEN, PoolShape};
use crate::error::{Error, Result};
use crate::kv_cache::{PageCopy, PagePool};
use crate::tensor::bf16;
use crate::text::Tokenizer;
use batch::Batch;
use config::Position;
use rotary::Rotary;
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

/// How long a sequence can become.
#[derive(Clone, Copy, Debug)]
pub struct Longest {
    /// Tokens that the model knows positions for.
    pub context: usize,
    /// Tokens that its cache holds.
    pub cache: usize,
}

impl Longest {
    /// Tokens at most.
    pub fn tokens(self) -> usize {
        self.context.min(self.cache)
    }

    /// An error if `tokens` and `new_tokens` more, the last of which is never run, are longer: the
    /// `model`'s ("base" or "guide").
    pub fn check(self, model: &'static str, tokens: usize, new_tokens: usize) -> Result<()> {
        let Self { context, cache } = self;
        let run = tokens.saturating_add(new_tokens).saturating_sub(1);
        if run > context {
            Err(Error::ContextTooShort { model, context, tokens, new_tokens })
        } else if run > cache {
            Err(Error::CacheTooShort { model, cache, tokens, new_tokens })
        } else {
            Ok(())
        }
    }
}

/// The tokens that a model has: those with ids below a number.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// "base", "tuned" or "untuned".
    pub model: &'static str,
    /// Rows of its embedding table, and logits.
    pub count: usize,
}

impl Rows {
    /// An error if one of `tokens`, which `tokenizer` has read, is beyond them.
    pub fn check(self, tokens: &[u32], tokenizer: &Tokenizer) -> Result<()> {
        let Self { model, count: rows } = self;
        match tokens.iter().find(|&&token| token as usize >= rows) {
            None => Ok(()),
            Some(&id) => {
                let name = tokenizer.name(id).map(str::to_owned);
                Err(Error::NoSuchToken { model, id, name, rows })
            }
        }
    }
}

/// One model, its cache, and its scratch memory.
pub struct Engine<B: Backend> {
    backend: Arc<B>,
    model: Model<B>,
    limits: Limits,
    pool: Pool<B>,
    batch: Batch<B>,
    activations: Activations<B>,
    /// The residual stream after the final norm, `[rows, width]`.
    normed: B::Buffer<bf16>,
    /// `[logit_rows, vocab]`
    logits: Logits<B>,
    /// Tokens asked for, `[entries]`, or drawn, `[rows]`.
    tokens: B::Buffer<u32>,
    /// Tokens that end a row, `[ends]`.
    ends: B::Buffer<u32>,
    /// Tokens drawn since the host last looked, `[steps_per_look, logit_rows]`.
    history: B::Buffer<u32>,
    /// `[entries]`
    logprobs: B::Buffer<f32>,
    /// Queues that may still have to read `tokens` or `logits`.
    readers: Vec<Arc<B>>,
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
            Position::Rotary(rotary) => {
                let table = cos_sin_table(rotary, context);
                let mut buffer = backend.alloc(table.len())?;
                backend.upload(&table, &mut buffer)?;
                buffer
            }
        };
        Ok(Self {
            pool: Pool { shape, data: backend.alloc(shape.len())?, cos_sin },
            batch: Batch::new(&*backend, limits.rows, context.div_ceil(PAGE_LEN))?,
            activations: Activations::new(&*backend, config, limits.rows)?,
            normed: backend.alloc(limits.rows * config.width)?,
            logits: Logits::new(&*backend, limits.logit_rows, config.vocab)?,
            tokens: backend.alloc(limits.rows)?,
            ends: backend.alloc(0)?,
            history: backend.alloc(backend.steps_per_look() * limits.logit_rows)?,
            logprobs: backend.alloc(limits.rows)?,
            readers: Vec::new(),
            rows_run: 0,
            backend,
            model,
            limits,
        })
    }

    /// Bytes of device memory that [`Engine::new`] takes for a model of this shape, whose weights are
    /// taken already.
    pub fn bytes(backend: &B, config: &Config, limits: Limits) -> usize {
        let Limits { pages, rows, logit_rows } = limits;
        let context = config.context.min(pages * PAGE_LEN);
        let cos_sin = match config.position {
            Position::Learned => 0,
            Position::Rotary(_) => context * config.heads.dim,
        };
        let history = backend.steps_per_look() * logit_rows;
        let wide = cos_sin + history + 2 * rows;
        let shape = PoolShape { layers: config.layers, pages, heads: config.heads };
        Batch::<B>::bytes(rows, context.div_ceil(PAGE_LEN))
            + Activations::<B>::bytes(config, rows)
            + (shape.len() + rows * config.width) * size_of::<bf16>()
            + Logits::bytes(backend, logit_rows, config.vocab)
            + wide * size_of::<f32>()
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

    /// How long a sequence can become that has its pages from `pages`.
    pub fn longest(&self, pages: &PagePool) -> Longest {
        Longest { context: self.config().context, cache: pages.capacity() * PAGE_LEN }
    }

    /// Returns when all that was asked of this engine has happened.
    pub fn wait(&self) -> Result<()> {
        self.backend.download(&self.tokens, &mut [0])
    }

    /// Rows run since the engine was built.
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
        self.windows(spans).try_for_each(|window| self.run(spans, window))
    }

    /// For each token of the spans, in order, log p(target | all tokens up to and with that one).
    /// `targets` has one token for each of them.
    pub fn logprobs(&mut self, spans: &[Span<'_>], targets: &[u32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; targets.len()];
        for window in self.windows(spans) {
            self.score(spans, targets, window.clone())?;
            self.read_scores(&mut out[window])?;
        }
        Ok(out)
    }

    /// All tokens of `spans`, in order, as many at a time as run together.
    fn windows(&self, spans: &[Span<'_>]) -> impl Iterator<Item = Range<usize>> + use<B> {
        let tokens: usize = spans.iter().map(|span| span.tokens.len()).sum();
        let most = self.limits.rows;
        (0..tokens).step_by(most).map(move |first| first..tokens.min(first + most))
    }

    /// Runs those tokens of `spans` that lie in `window`.
    fn run(&mut self, spans: &[Span<'_>], window: Range<usize>) -> Result<()> {
        self.batch.fill(&*self.backend, spans, window, 0)?;
        self.rows_run += self.batch.rows as u64;
        self.model.forward(&*self.backend, &self.batch, &mut self.pool, &mut self.activations)
    }

    /// Starts [`Engine::logprobs`] of one window, for [`Engine::read_scores`] to wait for.
    fn score(&mut self, spans: &[Span<'_>], targets: &[u32], window: Range<usize>) -> Result<()> {
        self.run(spans, window.clone())?;
        self.reclaim()?;
        let (backend, rows) = (&*self.backend, self.batch.rows);
        self.model.final_norm(backend, rows, &self.activations.x, &mut self.normed)?;
        backend.upload(&targets[window], &mut self.tokens)?;
        let (head, logprobs) = (&self.model.head, &mut self.logprobs);
        backend.logprobs(&self.normed, head, self.batch.entries(), &self.tokens, logprobs)
    }

    /// The log-probabilities of the window last scored, `[window.len()]`.
    fn read_scores(&self, out: &mut [f32]) -> Result<()> {
        self.backend.download(&self.logprobs, out)
    }

    /// Lets another engine's queue read `tokens` and `logits` as they will be once all that was asked
    /// of this engine is done. They are not written again before they were read.
    fn lend(&mut self, reader: &Arc<B>) -> Result<()> {
        self.readers.push(reader.clone());
        reader.after(&self.backend)
    }

    /// Waits, on the device, for those who read `tokens` or `logits`, which are to be written.
    fn reclaim(&mut self) -> Result<()> {
        self.readers.drain(..).try_for_each(|reader| self.backend.after(&reader))
    }
}

/// `[positions, head_dim]`: the cosines of a position's angles, then their sines, computed in
/// f32 as transformers does.
fn cos_sin_table(rotary: &Rotary, positions: usize) -> Vec<f32> {
    let Rotary { frequencies, scale } = rotary;
    (0..positions)
        .flat_map(|position| {
            let angles = frequencies.iter().map(move |f| position as f32 * f);
            let turns = angles.clone().map(f32::cos).chain(angles.map(f32::sin));
            turns.map(move |turn| turn * scale)
        })
        .collect()
}
