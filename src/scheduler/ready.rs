//! Reading, which takes long for long texts, apart from the thread that runs the models.

use std::sync::Arc;

use super::share::SMALL;
use crate::error::Result;
use crate::guide::{self, Guide};
use crate::hash::Fnv;
use crate::proposer::{self, Finish, Lifetime, Prompt, Proposer, Response};
use crate::search::Settings;

/// Reads prompts, on any thread, while the scheduler is at work on another.
pub struct Reader<P: Proposer, G: Guide> {
    pub(super) proposer: proposer::Reader<P::Prompt>,
    pub(super) guide: guide::Reader<G::Prompt>,
}

/// A search, or a response to be scored, whose texts have been read. Clones share these.
pub struct Ready<P: Proposer, G: Guide> {
    pub(super) life: Lifetime,
    pub(super) guide: Arc<G::Prompt>,
    pub(super) task: Task<P>,
}

pub(super) enum Task<P: Proposer> {
    Search { settings: Settings, stream: u64, proposer: Arc<P::Prompt>, traced: bool },
    Given(Response),
}

impl<P: Proposer, G: Guide> Clone for Reader<P, G> {
    fn clone(&self) -> Self {
        Self { proposer: self.proposer.clone(), guide: self.guide.clone() }
    }
}

impl<P: Proposer, G: Guide> Reader<P, G> {
    /// Reads a search's prompt; an error if the search could never run.
    pub fn search(&self, prompt: &Prompt, settings: Settings) -> Result<Ready<P, G>> {
        settings.validate()?;
        let life = settings.lifetime();
        let proposer = (self.proposer)(prompt, &life)?.into();
        let guide = (self.guide)(prompt, &life, None)?.into();
        let stream = stream(prompt);
        let task = Task::Search { settings, stream, proposer, traced: true };
        Ok(Ready { life, guide, task })
    }

    /// Reads a prompt and a response that is given as text; `ended` says whether the end of the text is the
    /// end of the response. An error if they could never be run.
    pub fn given(&self, prompt: &Prompt, text: String, ended: bool) -> Result<Ready<P, G>> {
        // No token is shorter than a byte.
        let life = Lifetime::given(text.len() + 1);
        let finish = Some(if ended { Finish::Eos } else { Finish::Length });
        let response = Response { text: text.into_bytes(), finish, ..Response::default() };
        let guide = (self.guide)(prompt, &life, Some(&response))?.into();
        Ok(Ready { life, guide, task: Task::Given(response) })
    }
}

impl<P: Proposer, G: Guide> Clone for Ready<P, G> {
    fn clone(&self) -> Self {
        Self { guide: self.guide.clone(), task: self.task.clone(), ..*self }
    }
}

impl<P: Proposer> Clone for Task<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Search { settings, stream, proposer, traced } => Self::Search {
                settings: settings.clone(),
                stream: *stream,
                proposer: proposer.clone(),
                traced: *traced,
            },
            Self::Given(response) => Self::Given(response.clone()),
        }
    }
}

impl<P: Proposer, G: Guide> Ready<P, G> {
    /// The same search with other random numbers; a given response stays as it is.
    pub fn with_seed(mut self, seed: u64) -> Self {
        if let Task::Search { settings, .. } = &mut self.task {
            settings.seed = seed;
        }
        self
    }

    /// The same search without a trace: its steps are not kept.
    pub fn untraced(mut self) -> Self {
        if let Task::Search { traced, .. } = &mut self.task {
            *traced = false;
        }
        self
    }

    /// Whether it takes next to no time: few tokens to draw, or a short text to score.
    pub(super) fn is_small(&self) -> bool {
        self.candidates().saturating_mul(self.life.response) <= SMALL
    }

    /// W·K; 1 for a given response.
    pub fn candidates(&self) -> usize {
        self.life.candidates.max(1)
    }
}

/// Names a search's random numbers by its prompt, so that the answer does not depend on where in a
/// file the prompt stands or what else is running.
fn stream(prompt: &Prompt) -> u64 {
    let mut hash = Fnv::default();
    let mut add = |text: &str| {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.add(&(text.len() as u64).to_le_bytes());
        hash.add(text.as_bytes());
    };
    match prompt {
        Prompt::Text(text) => add(text),
        Prompt::Chat(messages) => {
            for message in messages {
                add(&message.role);
                add(&message.content);
            }
        }
    }
    hash.finish()
}
