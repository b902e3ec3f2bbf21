//! What a guide has run of one hypothesis with one pair, and what it must run next.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Lifetime, Score};
use crate::engine::Common;
use crate::kv_cache::{Mark, PAGE_LEN, Sequence};
use crate::text::PromptText;

/// Room for a response that another tokenizer reads: twice the tokens, which is nearly always
/// enough. A hypothesis that needs more keeps only part of itself in the cache.
pub fn reserved(life: &Lifetime, context: usize) -> Lifetime {
    Lifetime {
        response: life.response.saturating_mul(2).min(context),
        chunk: life.chunk.saturating_mul(2).min(context),
        ..*life
    }
}

/// What one hypothesis may keep cached, so that its search stays within the pages reserved for it.
/// What it has beyond that is run on pages that all hypotheses of the search use in turn, and run
/// again at the next chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Tokens of prompt and response at most.
    pub tokens: usize,
    /// Tokens of one chunk at most.
    pub chunk: usize,
    /// A rollback to before this token would give up pages that are shared with the prompt's.
    pub start: usize,
}

impl Share {
    /// How many of a plan's rows a hypothesis may keep: all, or whole pages' worth, so that what is run
    /// behind them is on pages of its own.
    fn keeps(&self, plan: &Plan) -> usize {
        let Self { tokens: most, chunk, start: earliest } = *self;
        if plan.start < earliest {
            return 0;
        }
        if plan.tokens.len() <= most && plan.rows() <= chunk {
            return plan.rows();
        }
        // See `Lifetime::pages`: the page that it begins in, and its chunk's.
        let pages = plan.start / PAGE_LEN + 1 + chunk.div_ceil(PAGE_LEN);
        let end = pages.min(most.saturating_sub(1) / PAGE_LEN) * PAGE_LEN;
        end.saturating_sub(plan.start).min(plan.rows())
    }

    /// The share of a search that has reserved the pages of `life` after a prompt.
    pub fn new(life: &Lifetime, prompt: usize) -> Self {
        let last_page = prompt.saturating_sub(1).div_ceil(PAGE_LEN).saturating_sub(1);
        Self {
            tokens: prompt.saturating_add(life.response),
            chunk: life.chunk,
            start: last_page * PAGE_LEN,
        }
    }
}

/// What has been run of one hypothesis.
#[derive(Clone)]
pub(super) struct Cached {
    pub prompt_text: Arc<PromptText>,
    pub prompt: Arc<[u32]>,
    /// The tokens of prompt and response, where the response is given.
    pub given: Option<Arc<[u32]>>,
    /// All of `tokens` but the last, or fewer where the share does not hold them.
    pub sequence: Sequence,
    pub share: Share,
    /// The guide's tokens of prompt and response when last scored.
    pub tokens: Vec<u32>,
    /// `[tokens.len()]`: tuned and untuned log p of each token given those before it. Those of
    /// the prompt, which nobody asks for, are 0.
    pub logps: Vec<[f32; 2]>,
}

impl Cached {
    /// Takes over tokens and the log-probabilities of those that were run.
    pub fn update(&mut self, plan: Plan, logps: impl Iterator<Item = [f32; 2]>) {
        self.logps.resize(plan.tokens.len() - plan.rows(), [0.0; 2]);
        self.logps.extend(logps.take(plan.rows()));
        self.tokens = plan.tokens;
    }

    /// log p of the tokens after the prompt, summed in order; the first token of all, which has
    /// nothing before it, counts nothing.
    pub fn score(&self, weight: f64) -> Score {
        let first = common_prefix(&self.prompt, &self.tokens).max(1).min(self.tokens.len());
        let sum = |side: usize| -> f64 {
            self.logps[first..].iter().map(|logp| f64::from(logp[side])).sum::<f64>() * weight
        };
        let (logp_tuned, logp_untuned) = (sum(0), sum(1));
        Score {
            logp_tuned,
            logp_untuned,
            gain: logp_tuned - logp_untuned,
            tokens: self.tokens.len() - first,
        }
    }
}

/// The tokens that a hypothesis has now, and from where on they must be run.
pub(super) struct Plan {
    tokens: Vec<u32>,
    /// The first token to feed: the last one that old and new tokens have in common and all
    /// before which are cached.
    pub start: usize,
    /// How many of the tokens fed may stay in the cache, from the first one on.
    pub keeps: usize,
    /// What is cached before `start`.
    past: Mark,
}

impl Plan {
    /// Tokens that `cached` has never had so many of.
    pub fn new_tokens(&self, cached: &Cached) -> usize {
        self.tokens.len().saturating_sub(cached.tokens.len())
    }

    /// Rolls `cached` back to what it has in common with `tokens`.
    pub fn new(cached: &mut Cached, tokens: Vec<u32>) -> Self {
        let common = common_prefix(&cached.tokens, &tokens);
        let start = common.saturating_sub(1).min(cached.sequence.len());
        cached.sequence.truncate(start);
        let past = cached.sequence.mark();
        let mut plan = Self { tokens, start, keeps: 0, past };
        plan.keeps = cached.share.keeps(&plan);
        plan
    }

    /// Whether all that is run stays in the cache.
    pub fn stays(&self) -> bool {
        self.keeps == self.rows()
    }

    /// How many tokens to feed; the last one waits for the next chunk.
    pub fn rows(&self) -> usize {
        self.tokens.len().saturating_sub(1).saturating_sub(self.start)
    }

    /// The tokens to feed.
    pub fn fed(&self) -> &[u32] {
        &self.tokens[self.start..self.start + self.rows()]
    }

    /// The tokens whose log-probabilities they give.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.rows()..]
    }
}

/// What each plan feeds that an earlier one feeds too after the same past: a beam's last token at
/// least, for all its successors, and what they happened to draw alike.
pub(super) fn common<'a>(plans: impl Iterator<Item = &'a Plan>) -> Vec<Option<Common>> {
    let mut earlier: HashMap<Mark, Vec<(usize, &Plan)>> = HashMap::new();
    let find = |(index, plan): (usize, &'a Plan)| {
        let siblings = earlier.entry(plan.past).or_default();
        let shared = |other: &Plan| common_prefix(plan.fed(), other.fed());
        let most = siblings.iter().map(|&(with, other)| Common { with, tokens: shared(other) });
        let most = most.rev().max_by_key(|common| common.tokens);
        siblings.push((index, plan));
        most.filter(|common| common.tokens > 0)
    };
    plans.enumerate().map(find).collect()
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
