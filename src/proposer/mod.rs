//! Floor 4: who writes candidates.
//!
//! [`Proposer`] is what search sees of the base model. [`LocalProposer`] runs it here, alone or
//! with its logits shifted by a pair (emulated fine-tuning); [`RemoteProposer`] asks a server for
//! completions; [`BaseProposer`] is either. Tests script one of their own.

mod base;
mod local;
mod remote;

pub use base::{BasePrompt, BaseProposer, BaseState};
pub use local::{Guidance, LocalPrompt, LocalProposer, LocalState};
pub use remote::{ApiKey, Endpoint, RemoteFormat, RemotePrompt, RemoteProposer, RemoteState};

use std::sync::Arc;

use crate::error::{Error, Result};
pub use crate::kv_cache::Lifetime;
use crate::philox::Draw;
use crate::text::complete_utf8;
pub use crate::text::{Prompt, StopStrings};

/// How the next token is picked from the model's distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all tokens.
    pub top_k: u32,
    /// 1.0 keeps all tokens.
    pub top_p: f32,
}

/// Why a response goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// It ended with an end-of-sequence token, which is its last token.
    Eos,
    /// A stop string appeared.
    Stop,
    /// It reached the token limit.
    Length,
}

impl Finish {
    /// As it stands in results: `stop` or `length`.
    pub fn reason(self) -> &'static str {
        match self {
            Finish::Eos | Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// Stands for a token whose id a proposer does not know.
pub const UNTOLD: u32 = u32::MAX;

/// What has been written after the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// The base model's tokens, an end-of-sequence token included; [`UNTOLD`] where only their
    /// text is known.
    pub tokens: Vec<u32>,
    /// Their bytes; the last character may be incomplete. Ends with the stop string, if one
    /// appeared.
    pub text: Vec<u8>,
    /// Where in `text` the stop string begins.
    pub stop: Option<usize>,
    /// Set once, when nothing more may be added.
    pub finish: Option<Finish>,
}

impl Response {
    /// Adds a token and its bytes, and ends the response where a stop string appears.
    pub fn push(&mut self, token: u32, bytes: &[u8], stop: &StopStrings) {
        self.tokens.push(token);
        self.push_text(bytes, stop);
    }

    /// Adds the text of so many tokens that are not known, and ends the response likewise.
    pub fn push_untold(&mut self, tokens: usize, text: &str, stop: &StopStrings) {
        self.tokens.resize(self.tokens.len() + tokens, UNTOLD);
        self.push_text(text.as_bytes(), stop);
    }

    fn push_text(&mut self, bytes: &[u8], stop: &StopStrings) {
        let searched = self.text.len();
        self.text.extend_from_slice(bytes);
        if let Some(found) = stop.find(&self.text, searched) {
            self.stop = Some(found.start);
            self.text.truncate(found.end);
            self.finish = Some(Finish::Stop);
        }
    }

    /// Adds an end-of-sequence token.
    pub fn push_eos(&mut self, token: u32) {
        self.tokens.push(token);
        self.finish = Some(Finish::Eos);
    }

    /// The bytes that the answer keeps however the response goes on: without a stop string, and
    /// without what may yet become one.
    pub fn settled(&self, stop: &StopStrings) -> &[u8] {
        let end = match (self.stop, self.finish) {
            (Some(start), _) => start,
            (None, Some(_)) => self.text.len(),
            (None, None) => self.text.len() - stop.begun(&self.text),
        };
        &self.text[..end]
    }

    /// The end of the last whole character before byte `end`: what begins one that is not complete there
    /// stands behind it.
    pub fn whole_until(&self, end: usize) -> usize {
        end - complete_utf8(&self.text[..end]).1
    }

    /// The base model's tokens, where all of their ids are known.
    pub fn token_ids(&self) -> Option<&[u32]> {
        Some(&self.tokens[..]).filter(|tokens| !tokens.contains(&UNTOLD))
    }

    /// The stop string that ended it.
    pub fn stop_string(&self) -> Option<String> {
        self.stop.map(|start| String::from_utf8_lossy(&self.text[start..]).into_owned())
    }

    /// The text for people: without the stop string, broken characters replaced.
    pub fn to_text(&self) -> String {
        let end = self.stop.unwrap_or(self.text.len());
        String::from_utf8_lossy(&self.text[..end]).into_owned()
    }
}

/// A candidate that is to be continued.
pub struct Draft<'a, S> {
    /// The proposer's own state of it.
    pub state: &'a mut S,
    /// What it has written; new tokens are added here.
    pub response: &'a mut Response,
    /// Tokens to add at most.
    pub steps: usize,
    /// How to pick them.
    pub sampling: Sampling,
    /// Where to end.
    pub stop: &'a StopStrings,
    /// The random numbers: seed, search and candidate; positions are the response's own.
    pub draw: Draw,
    /// Set by a proposer that has not continued this draft.
    pub unfinished: &'a mut Option<Unfinished>,
}

/// Why a draft has not been continued.
#[derive(Debug)]
pub enum Unfinished {
    /// Its tokens are on the way: it is given to the proposer again.
    Later,
    /// There will be none: its search fails, no other does.
    Failed(Error),
}

impl<S> Draft<'_, S> {
    /// The same draft for a proposer whose state is inside this one's.
    pub fn inside<'b, T>(&'b mut self, state: impl FnOnce(&'b mut S) -> &'b mut T) -> Draft<'b, T> {
        Draft {
            state: state(self.state),
            response: self.response,
            steps: self.steps,
            sampling: self.sampling,
            stop: self.stop,
            draw: self.draw,
            unfinished: self.unfinished,
        }
    }
}

/// Turns a prompt into tokens and checks that it and the lifetime's response fit. It needs no model, so any
/// thread may call it while the models are at work.
pub type Reader<T> = Arc<dyn Fn(&Prompt, &Lifetime) -> Result<T> + Send + Sync>;

/// The base model, as search sees it: it forks (clones) states and extends them by a chunk.
///
/// All methods take many searches' states at once, so that they share the steps of the model. A
/// draft's tokens depend on its own state, settings and random numbers, never on its neighbours.
pub trait Proposer {
    /// A prompt that has been checked and turned into tokens.
    type Prompt: Send + Sync + 'static;
    /// What has been cached of one hypothesis. `clone` forks it, `drop` releases it.
    type State: Clone;

    /// What turns prompts into this proposer's.
    fn reader(&self) -> Reader<Self::Prompt>;

    /// Turns a prompt into tokens and checks that it and `life.response` more fit.
    fn prepare(&self, prompt: &Prompt, life: &Lifetime) -> Result<Self::Prompt> {
        self.reader()(prompt, life)
    }

    /// Pages that a search needs at most, per pool of this proposer.
    fn pages_needed(&self, prompt: &Self::Prompt, life: &Lifetime) -> Vec<usize>;

    /// All pages that there are, per pool.
    fn page_capacity(&self) -> Vec<usize>;

    /// Pages that nobody owns, per pool. Unless overridden all of them, which is right for a
    /// proposer that holds none.
    fn pages_free(&self) -> Vec<usize> {
        self.page_capacity()
    }

    /// The prompt's length in the base model's tokens, where that is known.
    fn prompt_tokens(&self, _prompt: &Self::Prompt) -> Option<usize> {
        None
    }

    /// Whether a chunk is cheaper, or comes out otherwise, when it is asked for in parts; then it
    /// is asked for as a whole, however far other searches have come.
    fn whole_chunks(&self) -> bool {
        false
    }

    /// Runs the prompts.
    fn open(&mut self, prompts: &[&Self::Prompt]) -> Result<Vec<Self::State>>;

    /// Extends each draft until it has `steps` more tokens or has ended, or says why it has not.
    /// Of a search's drafts either none is to be given again or all are.
    fn extend(&mut self, drafts: &mut [Draft<'_, Self::State>]) -> Result<()>;
}
