//! Models that wait for the device when they have run prompts, so that the scheduler's clock counts
//! that time where it belongs. All else ends with tokens or scores, which wait by themselves.

use crate::backend::Backend;
use crate::error::Result;
use crate::guide::{self, Guide, PairGuide, Score, Scoring};
use crate::kv_cache::Lifetime;
use crate::proposer::{self, Draft, LocalProposer, Proposer};

/// A proposer or a guide. Each waits for the queues that it has.
pub struct Waiting<T> {
    pub inner: T,
}

impl<B: Backend> Proposer for Waiting<LocalProposer<B>> {
    type Prompt = <LocalProposer<B> as Proposer>::Prompt;
    type State = <LocalProposer<B> as Proposer>::State;

    fn reader(&self) -> proposer::Reader<Self::Prompt> {
        self.inner.reader()
    }

    fn pages_needed(&self, prompt: &Self::Prompt, life: &Lifetime) -> Vec<usize> {
        self.inner.pages_needed(prompt, life)
    }

    fn page_capacity(&self) -> Vec<usize> {
        self.inner.page_capacity()
    }

    fn pages_free(&self) -> Vec<usize> {
        self.inner.pages_free()
    }

    fn open(&mut self, prompts: &[&Self::Prompt]) -> Result<Vec<Self::State>> {
        let states = self.inner.open(prompts)?;
        self.inner.engine().wait()?;
        Ok(states)
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, Self::State>]) -> Result<()> {
        self.inner.extend(drafts)
    }
}

impl<B: Backend> Guide for Waiting<PairGuide<B>> {
    type Prompt = <PairGuide<B> as Guide>::Prompt;
    type State = <PairGuide<B> as Guide>::State;

    fn reader(&self) -> guide::Reader<Self::Prompt> {
        self.inner.reader()
    }

    fn pages_needed(&self, prompt: &Self::Prompt, life: &Lifetime) -> Vec<usize> {
        self.inner.pages_needed(prompt, life)
    }

    fn page_capacity(&self) -> Vec<usize> {
        self.inner.page_capacity()
    }

    fn pages_free(&self) -> Vec<usize> {
        self.inner.pages_free()
    }

    fn open(&mut self, prompts: &[&Self::Prompt]) -> Result<Vec<Self::State>> {
        let states = self.inner.open(prompts)?;
        self.inner.wait()?;
        Ok(states)
    }

    fn score(&mut self, items: &mut [Scoring<'_, Self::State>]) -> Result<Vec<Result<Score>>> {
        self.inner.score(items)
    }
}
