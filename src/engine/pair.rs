//! The two small models of a guide, walking together: on a GPU side by side, each on a queue of its
//! own.

use std::path::Path;
use std::sync::Arc;

use super::{Config, Engine, Limits, Longest, Model, Rows, Span};
use crate::backend::Backend;
use crate::error::Result;
use crate::kv_cache::{PageCopy, PagePool};

/// Tuned and untuned: the same rows at the same positions, one page table over two pools.
///
/// Their vocabularies may be of different sizes, one with a token more, or with rows that no token has: each
/// softmax is over its own model's rows, and only tokens that both have can be run ([`Pair::rows`]).
pub struct Pair<B: Backend> {
    /// π_tuned
    pub tuned: Engine<B>,
    /// π_untuned
    pub untuned: Engine<B>,
    /// Pages, in both, for scoring.
    pub pages: PagePool,
    /// Pages, in both, for proposing tokens (emulated fine-tuning).
    pub proposal_pages: PagePool,
}

impl<B: Backend> Pair<B> {
    /// Loads both models; matrices that are equal in both are stored once. Of the limits' pages
    /// the last `proposal_pages` are for proposing, the others for scoring.
    pub fn open(
        backend: &Arc<B>,
        tuned: &Path,
        untuned: &Path,
        limits: Limits,
        proposal_pages: usize,
    ) -> Result<Self> {
        let tuned_model = Model::open(&**backend, tuned, None)?;
        let untuned_model = Model::open(&**backend, untuned, Some(&tuned_model))?;
        Self::new(backend, tuned_model, untuned_model, limits, proposal_pages)
    }

    /// A pair of models loaded by `backend`, whose tokens must mean the same; see [`Pair::open`].
    pub fn new(
        backend: &Arc<B>,
        tuned: Model<B>,
        untuned: Model<B>,
        limits: Limits,
        proposal_pages: usize,
    ) -> Result<Self> {
        let engine = |model| {
            let queue = backend.side()?;
            // The weights, some of which are in both models.
            queue.after(backend)?;
            Engine::new(Arc::new(queue), model, limits)
        };
        Ok(Self {
            tuned: engine(tuned)?,
            untuned: engine(untuned)?,
            pages: PagePool::over(0..page_id(limits.pages - proposal_pages)),
            proposal_pages: PagePool::over(
                page_id(limits.pages - proposal_pages)..page_id(limits.pages),
            ),
        })
    }

    /// Bytes of device memory that [`Pair::new`] takes for models of these shapes, whose weights are
    /// taken already.
    pub fn bytes(backend: &B, configs: [&Config; 2], limits: Limits) -> usize {
        let engine = |config| backend.side_bytes() + Engine::bytes(backend, config, limits);
        configs.into_iter().map(engine).sum()
    }

    /// The tokens that tuned has, and untuned. Both must have a token that is run.
    pub fn rows(&self) -> [Rows; 2] {
        let rows = |model, engine: &Engine<B>| Rows { model, count: engine.config().vocab };
        [rows("tuned", &self.tuned), rows("untuned", &self.untuned)]
    }

    /// How long a sequence can become that has its pages from `pages`, one of this pair's pools.
    pub fn longest(&self, pages: &PagePool) -> Longest {
        let longest = self.tuned.longest(pages);
        Longest { context: longest.context.min(self.untuned.config().context), ..longest }
    }

    /// [`Engine::copy_pages`] in both pools.
    pub fn copy_pages(&mut self, copies: &[PageCopy]) -> Result<()> {
        self.tuned.copy_pages(copies)?;
        self.untuned.copy_pages(copies)
    }

    /// [`Engine::wait`] for both.
    pub fn wait(&self) -> Result<()> {
        self.tuned.wait()?;
        self.untuned.wait()
    }

    /// [`Engine::prefill`] of both.
    pub fn prefill(&mut self, spans: &[Span<'_>]) -> Result<()> {
        self.tuned.prefill(spans)?;
        self.untuned.prefill(spans)
    }

    /// [`Engine::logprobs`] of both: tuned, untuned.
    pub fn logprobs(&mut self, spans: &[Span<'_>], targets: &[u32]) -> Result<[Vec<f32>; 2]> {
        let mut out = [vec![0.0; targets.len()], vec![0.0; targets.len()]];
        for window in self.tuned.windows(spans) {
            for engine in [&mut self.tuned, &mut self.untuned] {
                engine.score(spans, targets, window.clone())?;
            }
            // Both are at work while the host waits for the first.
            for (engine, out) in [&self.tuned, &self.untuned].into_iter().zip(&mut out) {
                engine.read_scores(&mut out[window.clone()])?;
            }
        }
        Ok(out)
    }

    /// [`Engine::begin`] of both.
    pub fn begin(&mut self, spans: &[Span<'_>], steps: usize) -> Result<()> {
        self.tuned.begin(spans, steps)?;
        self.untuned.begin(spans, steps)
    }

    /// [`Engine::next_logits`] of both.
    pub fn next_logits(&mut self) -> Result<()> {
        self.tuned.next_logits()?;
        self.untuned.next_logits()
    }

    /// [`Engine::follow`] of both.
    pub fn follow(&mut self, step: usize, leader: &mut Engine<B>) -> Result<()> {
        self.tuned.follow(step, leader)?;
        self.untuned.follow(step, leader)
    }
}

fn page_id(page: usize) -> u32 {
    u32::try_from(page).expect("page ids are u32")
}
