//! The two small models of a guide, walking together.

use std::path::Path;
use std::sync::Arc;

use super::{Config, Engine, Limits, Model, Span};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kv_cache::{PageCopy, PagePool};

/// Tuned and untuned: the same rows at the same positions, one page table over two pools.
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
        same_vocabulary_size(tuned, &tuned_model.config, untuned, &untuned_model.config)?;
        Self::new(backend, tuned_model, untuned_model, limits, proposal_pages)
    }

    /// A pair of loaded models, which must have the same vocabulary; see [`Pair::open`].
    pub fn new(
        backend: &Arc<B>,
        tuned: Model<B>,
        untuned: Model<B>,
        limits: Limits,
        proposal_pages: usize,
    ) -> Result<Self> {
        Ok(Self {
            tuned: Engine::new(backend.clone(), tuned, limits)?,
            untuned: Engine::new(backend.clone(), untuned, limits)?,
            pages: PagePool::over(0..page_id(limits.pages - proposal_pages)),
            proposal_pages: PagePool::over(
                page_id(limits.pages - proposal_pages)..page_id(limits.pages),
            ),
        })
    }

    /// Positions that a sequence can have in both.
    pub fn context(&self) -> usize {
        self.tuned.context().min(self.untuned.context())
    }

    /// [`Engine::copy_pages`] in both pools.
    pub fn copy_pages(&mut self, copies: &[PageCopy]) -> Result<()> {
        self.tuned.copy_pages(copies)?;
        self.untuned.copy_pages(copies)
    }

    /// [`Engine::prefill`] of both.
    pub fn prefill(&mut self, spans: &[Span<'_>]) -> Result<()> {
        self.tuned.prefill(spans)?;
        self.untuned.prefill(spans)
    }

    /// [`Engine::logprobs`] of both: tuned, untuned.
    pub fn logprobs(&mut self, spans: &[Span<'_>], targets: &[u32]) -> Result<[Vec<f32>; 2]> {
        Ok([self.tuned.logprobs(spans, targets)?, self.untuned.logprobs(spans, targets)?])
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

    /// [`Engine::advance`] of both, to what `leader` drew.
    pub fn follow(&mut self, step: usize, leader: &Engine<B>) -> Result<()> {
        self.tuned.advance(step, Some(leader))?;
        self.untuned.advance(step, Some(leader))
    }
}

fn page_id(page: usize) -> u32 {
    u32::try_from(page).expect("page ids are u32")
}

/// Models whose logits are compared entry by entry must have equally many.
pub fn same_vocabulary_size(
    a: &Path,
    a_config: &Config,
    b: &Path,
    b_config: &Config,
) -> Result<()> {
    if a_config.vocab == b_config.vocab {
        return Ok(());
    }
    Err(Error::VocabularyMismatch {
        a: a.display().to_string(),
        b: b.display().to_string(),
        reason: format!("{} entries against {}", a_config.vocab, b_config.vocab),
    })
}
