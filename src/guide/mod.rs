//! Floor 4: who judges candidates.
//!
//! [`Guide`] is what search sees of the small models: the gain
//! log π_tuned(y | x) − log π_untuned(y | x) of everything written so far. [`PairGuide`] computes
//! it with one or several weighted pairs; tests script one of their own.

mod cached;
mod pair;
mod reading;

pub use cached::reserved;
pub use pair::{GuideTokens, PairGuide, PairState, WeightedPair};
pub use reading::PairPrompt;

use std::sync::Arc;

use crate::error::Result;
use crate::kv_cache::Lifetime;
use crate::proposer::Response;
use crate::text::Prompt;

/// What a guide says of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// log π_tuned of the whole response; with several pairs, their weighted sum.
    pub logp_tuned: f64,
    /// log π_untuned, likewise.
    pub logp_untuned: f64,
    /// Their difference.
    pub gain: f64,
    /// The guide's own tokens that were scored (the first pair's).
    pub tokens: usize,
}

/// A response that is to be scored, and what the guide has cached of it.
pub struct Scoring<'a, S> {
    /// The guide's own state.
    pub state: &'a mut S,
    /// All that has been written so far.
    pub response: &'a Response,
}

/// Turns a prompt into tokens, as a [`Reader`](crate::proposer::Reader) of the base model does; with a response
/// that is given, its tokens too, so that scoring it needs no more reading.
pub type Reader<T> = Arc<dyn Fn(&Prompt, &Lifetime, Option<&Response>) -> Result<T> + Send + Sync>;

/// The pair of small models, as search sees it.
///
/// All methods take many searches' states at once. A score depends on prompt and response alone,
/// however the response was cut into chunks.
pub trait Guide {
    /// A prompt that has been checked and turned into tokens.
    type Prompt: Send + Sync + 'static;
    /// What has been cached of one hypothesis. `clone` forks it, `drop` releases it.
    type State: Clone;

    /// What turns prompts, and responses that are given, into this guide's.
    fn reader(&self) -> Reader<Self::Prompt>;

    /// Turns a prompt into tokens and checks that it and `life.response` more fit; where the response is
    /// given ([`Lifetime::is_given`]), that is an upper bound, its bytes being all that is known of it.
    fn prepare(&self, prompt: &Prompt, life: &Lifetime) -> Result<Self::Prompt> {
        self.reader()(prompt, life, None)
    }

    /// Pages that a search needs at most, per pool of this guide.
    fn pages_needed(&self, prompt: &Self::Prompt, life: &Lifetime) -> Vec<usize>;

    /// All pages that there are, per pool.
    fn page_capacity(&self) -> Vec<usize>;

    /// Pages that nobody owns, per pool. Unless overridden all of them, which is right for a guide
    /// that holds none.
    fn pages_free(&self) -> Vec<usize> {
        self.page_capacity()
    }

    /// Runs the prompts.
    fn open(&mut self, prompts: &[&Self::Prompt]) -> Result<Vec<Self::State>>;

    /// Scores each response; one that cannot be scored is an error of its own, and where that lies in its text
    /// ([`Error::is_of_the_text`](crate::error::Error::is_of_the_text)), it alone is lost.
    fn score(&mut self, items: &mut [Scoring<'_, Self::State>]) -> Result<Vec<Result<Score>>>;
}
