//! The gain from pairs of small models, incrementally.
//!
//! Whatever the tokens come from, scoring is one thing: the guide's tokens of prompt and response
//! so far are compared with those already run, the cache is rolled back to what both have in
//! common, and the rest is run. The model reads with a lag of one token: feeding token i gives
//! log p of token i + 1, so the last token is fed with the next chunk and every token is run once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Guide, Lifetime, Prompt, Score, Scoring};
use crate::backend::Backend;
use crate::engine::{Pair, Span};
use crate::error::{Error, Result};
use crate::kv_cache::{PagePool, Sequence};
use crate::proposer::{Finish, Response};
use crate::text::{PromptFormat, complete_utf8};

/// How a response becomes the guide's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuideTokens {
    /// The base model's tokens as they are: both have the same vocabulary. A response that comes
    /// without tokens is read as text.
    Ids,
    /// The response's text joined to the guide's prompt and tokenised by the guide.
    Text,
}

/// One of a guide's pairs.
pub struct WeightedPair<B: Backend> {
    /// The models, perhaps shared with a proposer.
    pub pair: Arc<Mutex<Pair<B>>>,
    /// Factor on this pair's log-probabilities.
    pub weight: f64,
    /// How this pair is prompted.
    pub format: PromptFormat,
    /// How responses become tokens.
    pub tokens: GuideTokens,
    /// The token that ends a text in [`GuideTokens::Text`].
    pub eos: Option<u32>,
}

impl<B: Backend> WeightedPair<B> {
    fn pair(&self) -> MutexGuard<'_, Pair<B>> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Weighted pairs of small models; their gains add.
pub struct PairGuide<B: Backend> {
    pairs: Vec<WeightedPair<B>>,
    /// Score a response that was cut by a limit or a stop string as if it had ended, as the
    /// paper's code does.
    compat: bool,
    /// Tokens of the first pair that were there for the first time.
    tokens_new: u64,
}

/// A prompt for each pair.
pub struct PairPrompt {
    pairs: Vec<Rendered>,
}

struct Rendered {
    text: String,
    tokens: Arc<[u32]>,
}

/// What has been run of one hypothesis, for each pair.
#[derive(Clone)]
pub struct PairState {
    pairs: Vec<Cached>,
}

#[derive(Clone)]
struct Cached {
    prompt_text: Arc<str>,
    prompt: Arc<[u32]>,
    /// All of `tokens` but the last.
    sequence: Sequence,
    /// The guide's tokens of prompt and response when last scored.
    tokens: Vec<u32>,
    /// `[tokens.len()]`: tuned and untuned log p of each token given those before it. Those of
    /// the prompt, which nobody asks for, are 0.
    logps: Vec<[f32; 2]>,
}

impl Cached {
    /// log p of the tokens after the prompt, summed in order; the first token of all, which has
    /// nothing before it, counts nothing.
    fn score(&self, weight: f64) -> Score {
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

impl<B: Backend> PairGuide<B> {
    /// A guide from pairs; see [`PairGuide`] for `compat`.
    pub fn new(pairs: Vec<WeightedPair<B>>, compat: bool) -> Self {
        Self { pairs, compat, tokens_new: 0 }
    }

    /// The first pair's cache pages, the same in both of its pools.
    pub fn pages(&self) -> Option<PagePool> {
        self.pairs.first().map(|pair| pair.pair().pages.clone())
    }

    /// Tokens that the first pair's models have run.
    pub fn rows_run(&self) -> u64 {
        self.pairs.first().map_or(0, |pair| pair.pair().tuned.rows_run())
    }

    /// Whether every pair has a token that ends a text.
    pub fn has_eos(&self) -> bool {
        self.pairs.iter().all(|pair| pair.eos.is_some())
    }

    /// Tokens that were new to the first pair: those of prompts and chunks, each counted once. The
    /// tokens run, divided by these, are the scorer-work ratio; 1 is ideal.
    pub fn tokens_new(&self) -> u64 {
        self.tokens_new
    }

    /// The guide's tokens of a prompt and a response.
    fn tokenise(
        &self,
        pair: &WeightedPair<B>,
        cached: &Cached,
        response: &Response,
    ) -> Result<Vec<u32>> {
        let ended = match response.finish {
            Some(Finish::Eos) => true,
            Some(Finish::Stop | Finish::Length) => self.compat,
            None => false,
        };
        match pair.tokens {
            GuideTokens::Ids if !response.tokens.is_empty() => {
                Ok(cached.prompt.iter().chain(&response.tokens).copied().collect())
            }
            _ => {
                let text = match response.finish {
                    // More bytes may still complete the last character.
                    None => complete_utf8(&response.text).0,
                    Some(_) => String::from_utf8_lossy(&response.text),
                };
                let mut tokens = pair.format.encode(&format!("{}{text}", cached.prompt_text))?;
                if ended {
                    tokens.extend(pair.eos);
                }
                Ok(tokens)
            }
        }
    }

    /// Scores all items with one pair; with the number of tokens that were new.
    fn score_pair(
        &self,
        index: usize,
        items: &mut [Scoring<'_, PairState>],
    ) -> Result<(Vec<Result<Score>>, u64)> {
        let weighted = &self.pairs[index];
        let mut pair = weighted.pair();
        let (context, vocab) = (pair.context(), pair.tuned.config().vocab);

        // What each item has to run, after rolling back to what is still true.
        let mut plans: Vec<Result<Plan>> = Vec::with_capacity(items.len());
        for item in items.iter_mut() {
            let cached = &mut item.state.pairs[index];
            let plan = self.tokenise(weighted, cached, item.response).and_then(|tokens| {
                let longest = tokens.len().saturating_sub(1);
                if longest > context {
                    let prompt = cached.prompt.len();
                    return Err(Error::ContextTooShort {
                        model: "guide",
                        context,
                        tokens: prompt,
                        new_tokens: tokens.len().saturating_sub(prompt),
                    });
                }
                check_vocabulary(&tokens, vocab)?;
                Ok(Plan::new(cached, tokens))
            });
            plans.push(plan);
        }
        let mut copies = Vec::new();
        for (item, plan) in items.iter_mut().zip(&mut plans) {
            let rows = plan.as_ref().map_or(0, |plan| plan.rows());
            match item.state.pairs[index].sequence.append(rows) {
                Ok(copy) => copies.extend(copy),
                Err(error) => *plan = Err(error),
            }
        }
        pair.copy_pages(&copies)?;

        let running: Vec<_> = items
            .iter()
            .zip(&plans)
            .filter_map(|(item, plan)| Some((&item.state.pairs[index], plan.as_ref().ok()?)))
            .filter(|(_, plan)| plan.rows() > 0)
            .collect();
        let spans: Vec<Span<'_>> = running
            .iter()
            .map(|(cached, plan)| Span {
                tokens: &plan.tokens[plan.start..plan.tokens.len() - 1],
                start: plan.start,
                sequence: &cached.sequence,
            })
            .collect();
        let targets: Vec<u32> =
            running.iter().flat_map(|(_, plan)| &plan.tokens[plan.start + 1..]).copied().collect();
        let [tuned, untuned] = pair.logprobs(&spans, &targets)?;
        let mut logps = tuned.into_iter().zip(untuned).map(|(tuned, untuned)| [tuned, untuned]);

        let mut tokens_new = 0;
        let scores = items
            .iter_mut()
            .zip(plans)
            .map(|(item, plan)| {
                let plan = plan?;
                let cached = &mut item.state.pairs[index];
                tokens_new += plan.tokens.len().saturating_sub(cached.tokens.len()) as u64;
                cached.logps.resize(plan.tokens.len() - plan.rows(), [0.0; 2]);
                cached.logps.extend(logps.by_ref().take(plan.rows()));
                cached.tokens = plan.tokens;
                let score = cached.score(weighted.weight);
                if score.gain.is_finite() {
                    Ok(score)
                } else {
                    Err(Error::NotFinite { what: "the gain of a candidate".into() })
                }
            })
            .collect();
        Ok((scores, tokens_new))
    }
}

/// The tokens an item has now, and from where on they must be run.
struct Plan {
    tokens: Vec<u32>,
    /// The first token to feed: the last one that old and new tokens have in common.
    start: usize,
}

impl Plan {
    /// Rolls `cached` back to what it has in common with `tokens`.
    fn new(cached: &mut Cached, tokens: Vec<u32>) -> Self {
        let common = common_prefix(&cached.tokens, &tokens);
        let start = common.saturating_sub(1);
        cached.sequence.truncate(start.min(cached.sequence.len()));
        Self { tokens, start }
    }

    /// Tokens to feed; the last one waits for the next chunk.
    fn rows(&self) -> usize {
        self.tokens.len().saturating_sub(1).saturating_sub(self.start)
    }
}

impl<B: Backend> Guide for PairGuide<B> {
    type Prompt = PairPrompt;
    type State = PairState;

    fn prepare(&self, prompt: &Prompt, life: &Lifetime) -> Result<PairPrompt> {
        let pairs = self
            .pairs
            .iter()
            .map(|weighted| {
                let text = weighted.format.render(prompt)?;
                let tokens = weighted.format.encode(&text)?;
                let (context, vocab) = {
                    let pair = weighted.pair();
                    (pair.context(), pair.tuned.config().vocab)
                };
                check_vocabulary(&tokens, vocab)?;
                // Re-tokenised text may have fewer tokens; that is found out while scoring.
                let new_tokens = match weighted.tokens {
                    GuideTokens::Ids => life.response,
                    GuideTokens::Text => 1,
                };
                if tokens.len() + new_tokens - 1 > context {
                    let (tokens, new_tokens) = (tokens.len(), life.response);
                    return Err(Error::ContextTooShort {
                        model: "guide",
                        context,
                        tokens,
                        new_tokens,
                    });
                }
                Ok(Rendered { text, tokens: tokens.into() })
            })
            .collect::<Result<_>>()?;
        Ok(PairPrompt { pairs })
    }

    fn pages_needed(&self, prompt: &PairPrompt, life: &Lifetime) -> Vec<usize> {
        self.pairs
            .iter()
            .zip(&prompt.pairs)
            .map(|(pair, prompt)| {
                let context = pair.pair().context();
                let life = match pair.tokens {
                    GuideTokens::Ids => Lifetime { response: life.response.min(context), ..*life },
                    // Another tokenizer may need more tokens for the same text. Twice as many
                    // are reserved; a search that needs still more fails by itself.
                    GuideTokens::Text => Lifetime {
                        response: (2 * life.response).min(context),
                        chunk: life.chunk.saturating_mul(2).min(context),
                        ..*life
                    },
                };
                life.pages(prompt.tokens.len())
            })
            .collect()
    }

    fn page_capacity(&self) -> Vec<usize> {
        self.pairs.iter().map(|weighted| weighted.pair().pages.capacity()).collect()
    }

    fn pages_free(&self) -> Vec<usize> {
        self.pairs.iter().map(|weighted| weighted.pair().pages.free()).collect()
    }

    fn open(&mut self, prompts: &[&PairPrompt]) -> Result<Vec<PairState>> {
        let mut states: Vec<PairState> =
            prompts.iter().map(|_| PairState { pairs: Vec::new() }).collect();
        for (index, weighted) in self.pairs.iter().enumerate() {
            let mut pair = weighted.pair();
            for (state, prompt) in states.iter_mut().zip(prompts) {
                let Rendered { text, tokens } = &prompt.pairs[index];
                let mut sequence = pair.pages.sequence();
                let rows = tokens.len().saturating_sub(1);
                sequence.append(rows)?;
                self.tokens_new += if index == 0 { rows as u64 } else { 0 };
                state.pairs.push(Cached {
                    prompt_text: text.as_str().into(),
                    prompt: tokens.clone(),
                    sequence,
                    tokens: tokens.to_vec(),
                    logps: vec![[0.0; 2]; tokens.len()],
                });
            }
            let spans: Vec<Span<'_>> = states
                .iter()
                .map(|state| &state.pairs[index])
                .filter(|cached| !cached.sequence.is_empty())
                .map(|cached| Span {
                    tokens: &cached.tokens[..cached.tokens.len() - 1],
                    start: 0,
                    sequence: &cached.sequence,
                })
                .collect();
            pair.prefill(&spans)?;
        }
        Ok(states)
    }

    fn score(&mut self, items: &mut [Scoring<'_, PairState>]) -> Result<Vec<Result<Score>>> {
        let mut totals: Vec<Result<Score>> = items.iter().map(|_| Ok(Score::default())).collect();
        for index in 0..self.pairs.len() {
            let (scores, tokens_new) = self.score_pair(index, items)?;
            self.tokens_new += if index == 0 { tokens_new } else { 0 };
            for (total, score) in totals.iter_mut().zip(scores) {
                *total = match (std::mem::replace(total, Ok(Score::default())), score) {
                    (Ok(total), Ok(score)) => Ok(add(total, score, index)),
                    (Err(error), _) | (Ok(_), Err(error)) => Err(error),
                };
            }
        }
        Ok(totals)
    }
}

fn add(total: Score, score: Score, index: usize) -> Score {
    Score {
        logp_tuned: total.logp_tuned + score.logp_tuned,
        logp_untuned: total.logp_untuned + score.logp_untuned,
        gain: total.gain + score.gain,
        tokens: if index == 0 { score.tokens } else { total.tokens },
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn check_vocabulary(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        None => Ok(()),
        Some(token) => Err(Error::VocabularyMismatch {
            a: "the text".into(),
            b: "the guide".into(),
            reason: format!("token {token} is beyond the guide's {vocab} entries"),
        }),
    }
}
