//! The base model, wherever it is: here or elsewhere.

use std::sync::Arc;

use super::{Draft, Lifetime, LocalPrompt, LocalProposer, LocalState, Proposer, Reader};
use super::{RemotePrompt, RemoteProposer, RemoteState};
use crate::backend::Backend;
use crate::error::Result;

/// One proposer or the other, chosen once, when a program starts.
pub enum BaseProposer<B: Backend> {
    /// On this machine's own engine.
    Local(Box<LocalProposer<B>>),
    /// On a server.
    Remote(Box<RemoteProposer>),
}

impl<B: Backend> BaseProposer<B> {
    /// Whether what it reads here may depend on the day.
    pub fn asks_for_date(&self) -> bool {
        match self {
            Self::Local(local) => local.asks_for_date(),
            Self::Remote(remote) => remote.asks_for_date(),
        }
    }
}

/// Its prompt.
pub enum BasePrompt {
    /// Of a [`LocalProposer`].
    Local(LocalPrompt),
    /// Of a [`RemoteProposer`].
    Remote(RemotePrompt),
}

/// Its state.
#[derive(Clone)]
pub enum BaseState {
    /// Of a [`LocalProposer`].
    Local(LocalState),
    /// Of a [`RemoteProposer`].
    Remote(RemoteState),
}

const OTHERS: &str = "a proposer's own prompts and states";

impl BasePrompt {
    fn local(&self) -> &LocalPrompt {
        let Self::Local(prompt) = self else { unreachable!("{OTHERS}") };
        prompt
    }

    fn remote(&self) -> &RemotePrompt {
        let Self::Remote(prompt) = self else { unreachable!("{OTHERS}") };
        prompt
    }
}

impl BaseState {
    fn local(&mut self) -> &mut LocalState {
        let Self::Local(state) = self else { unreachable!("{OTHERS}") };
        state
    }

    fn remote(&mut self) -> &mut RemoteState {
        let Self::Remote(state) = self else { unreachable!("{OTHERS}") };
        state
    }
}

/// The same drafts with the states that are inside theirs.
fn inside<'a, S>(
    drafts: &'a mut [Draft<'_, BaseState>],
    state: fn(&mut BaseState) -> &mut S,
) -> Vec<Draft<'a, S>> {
    drafts.iter_mut().map(|draft| draft.inside(state)).collect()
}

impl<B: Backend> Proposer for BaseProposer<B> {
    type Prompt = BasePrompt;
    type State = BaseState;

    fn reader(&self) -> Reader<BasePrompt> {
        match self {
            Self::Local(proposer) => {
                let read = proposer.reader();
                Arc::new(move |prompt, life| read(prompt, life).map(BasePrompt::Local))
            }
            Self::Remote(proposer) => {
                let read = proposer.reader();
                Arc::new(move |prompt, life| read(prompt, life).map(BasePrompt::Remote))
            }
        }
    }

    fn pages_needed(&self, prompt: &BasePrompt, life: &Lifetime) -> Vec<usize> {
        match self {
            Self::Local(proposer) => proposer.pages_needed(prompt.local(), life),
            Self::Remote(proposer) => proposer.pages_needed(prompt.remote(), life),
        }
    }

    fn page_capacity(&self) -> Vec<usize> {
        match self {
            Self::Local(proposer) => proposer.page_capacity(),
            Self::Remote(proposer) => proposer.page_capacity(),
        }
    }

    fn pages_free(&self) -> Vec<usize> {
        match self {
            Self::Local(proposer) => proposer.pages_free(),
            Self::Remote(proposer) => proposer.pages_free(),
        }
    }

    fn prompt_tokens(&self, prompt: &BasePrompt) -> Option<usize> {
        match self {
            Self::Local(proposer) => proposer.prompt_tokens(prompt.local()),
            Self::Remote(proposer) => proposer.prompt_tokens(prompt.remote()),
        }
    }

    fn whole_chunks(&self) -> bool {
        match self {
            Self::Local(proposer) => proposer.whole_chunks(),
            Self::Remote(proposer) => proposer.whole_chunks(),
        }
    }

    fn open(&mut self, prompts: &[&BasePrompt]) -> Result<Vec<BaseState>> {
        match self {
            Self::Local(proposer) => {
                let prompts: Vec<_> = prompts.iter().map(|prompt| prompt.local()).collect();
                Ok(proposer.open(&prompts)?.into_iter().map(BaseState::Local).collect())
            }
            Self::Remote(proposer) => {
                let prompts: Vec<_> = prompts.iter().map(|prompt| prompt.remote()).collect();
                Ok(proposer.open(&prompts)?.into_iter().map(BaseState::Remote).collect())
            }
        }
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, BaseState>]) -> Result<()> {
        match self {
            Self::Local(proposer) => proposer.extend(&mut inside(drafts, BaseState::local)),
            Self::Remote(proposer) => proposer.extend(&mut inside(drafts, BaseState::remote)),
        }
    }
}
