//! The gain from pairs of small models, incrementally.
//!
//! Whatever the tokens come from, scoring is one thing: the guide's tokens of prompt and response
//! so far are compared with those already run, the cache is rolled back to what both have in
//! common, and the rest is run. The model reads with a lag of one token: feeding token i gives
//! log p of token i + 1, so the last token is fed with the next chunk and every token is run once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cached::{Cached, Plan, common};
use super::reading::{PairPrompt, Reading, Rendered, check_rows, ended, with_end};
use super::{Guide, Lifetime, Reader, Score, Scoring};
use crate::backend::Backend;
use crate::engine::{Longest, Pair, Span};
use crate::error::{Error, Result};
use crate::kv_cache::{PAGE_LEN, PagePool, Sequence};
use crate::proposer::Response;
use crate::text::{Bos, PromptFormat, Tokenizer, complete_utf8};

/// How a response becomes the guide's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuideTokens {
    /// The base model's tokens as they are: they mean the same to both. A response that comes without tokens
    /// is read as text.
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
    /// The token that ends a text in [`GuideTokens::Text`], where the end of one can be scored.
    pub eos: Option<u32>,
    /// Bytes that one token of a response adds to its text at most.
    pub longest_token: usize,
}

impl<B: Backend> WeightedPair<B> {
    fn pair(&self) -> MutexGuard<'_, Pair<B>> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a text can be with its prompt.
    fn longest(&self) -> Longest {
        let pair = self.pair();
        pair.longest(&pair.pages)
    }

    fn reading(&self, compat: bool) -> Reading {
        Reading {
            format: self.format.clone(),
            tokens: self.tokens,
            eos: self.eos,
            longest_token: self.longest_token,
            longest: self.longest(),
            rows: self.pair().rows(),
            compat,
        }
    }
}

/// Weighted pairs of small models; their gains add.
pub struct PairGuide<B: Backend> {
    pairs: Vec<WeightedPair<B>>,
    /// The base model's tokenizer where responses are read as the paper's code reads them.
    compat: Option<Arc<Tokenizer>>,
    /// Tokens of the first pair that were there for the first time.
    tokens_new: u64,
}

/// What has been run of one hypothesis, for each pair.
#[derive(Clone)]
pub struct PairState {
    pairs: Vec<Cached>,
}

impl<B: Backend> PairGuide<B> {
    /// A guide from pairs. With `compat`, the base model's tokenizer, it does as the paper's code:
    /// a response's text is what that tokenizer's decoder makes of its tokens (also of broken
    /// characters), without special tokens, and one that was cut by a limit or a stop string is
    /// scored as if it had ended.
    pub fn new(pairs: Vec<WeightedPair<B>>, compat: Option<Arc<Tokenizer>>) -> Self {
        Self { pairs, compat, tokens_new: 0 }
    }

    fn readings(&self) -> Vec<Reading> {
        self.pairs.iter().map(|weighted| weighted.reading(self.compat.is_some())).collect()
    }

    /// Sequences of full length that fit into the cache at the same time.
    pub fn whole_sequences(&self) -> usize {
        let fit = self.pairs.iter().map(|weighted| {
            let longest = weighted.longest();
            (longest.cache / PAGE_LEN) / longest.tokens().div_ceil(PAGE_LEN).max(1)
        });
        fit.min().unwrap_or(usize::MAX)
    }

    /// The first pair's cache pages, the same in both of its pools.
    pub fn pages(&self) -> Option<PagePool> {
        self.pairs.first().map(|pair| pair.pair().pages.clone())
    }

    /// Tokens that the first pair's models have run.
    pub fn rows_run(&self) -> u64 {
        self.pairs.first().map_or(0, |pair| pair.pair().tuned.rows_run())
    }

    /// Whether what the pairs read may depend on the day.
    pub fn asks_for_date(&self) -> bool {
        self.pairs.iter().any(|pair| pair.format.asks_for_date())
    }

    /// Returns when all that was asked of the pairs has happened.
    pub fn wait(&self) -> Result<()> {
        self.pairs.iter().try_for_each(|weighted| weighted.pair().wait())
    }

    /// The token that ends a text for the first pair.
    pub fn eos(&self) -> Option<u32> {
        self.pairs.first()?.eos
    }

    /// How responses become the first pair's tokens.
    pub fn tokens(&self) -> Option<GuideTokens> {
        Some(self.pairs.first()?.tokens)
    }

    /// Tokens that were new to the first pair: those of prompts and of all candidates' chunks. The
    /// rows run, divided by these, are the scorer-work ratio: 1 where each token is run once, less
    /// where candidates share the first tokens of their chunks.
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
        if let Some(given) = &cached.given {
            return Ok(given.to_vec());
        }
        if pair.tokens == GuideTokens::Ids && !response.tokens.is_empty() {
            return Ok(cached.prompt.iter().chain(&response.tokens).copied().collect());
        }
        let text = match (&self.compat, response.finish) {
            // One that somebody else wrote has no tokens.
            (Some(base), _) if response.stop.is_none() && !response.tokens.is_empty() => {
                reference_text(base, response).map_err(Error::unreadable("base"))?.into()
            }
            // More bytes may still complete the last character.
            (_, None) => complete_utf8(&response.text).0,
            (_, Some(_)) => String::from_utf8_lossy(&response.text),
        };
        let whole = cached.prompt_text.with(&text);
        with_end(&pair.format, &whole, pair.eos, ended(response, self.compat.is_some()))
    }

    /// One pair's tokens of all items; of texts side by side, which may be long.
    fn tokenise_all(
        &self,
        index: usize,
        items: &[Scoring<'_, PairState>],
    ) -> Vec<Result<Vec<u32>>> {
        let pair = &self.pairs[index];
        let tokenise = |item: &Scoring<'_, PairState>| {
            self.tokenise(pair, &item.state.pairs[index], item.response)
        };
        match pair.tokens {
            GuideTokens::Ids => items.iter().map(tokenise).collect(),
            GuideTokens::Text => items.par_iter().map(tokenise).collect(),
        }
    }

    /// Scores all items with one pair; with the number of tokens that were new.
    fn score_pair(
        &self,
        index: usize,
        items: &mut [Scoring<'_, PairState>],
    ) -> Result<(Vec<Result<Score>>, u64)> {
        let weighted = &self.pairs[index];
        let tokens = self.tokenise_all(index, items);
        let mut pair = weighted.pair();
        let (longest, rows) = (pair.longest(&pair.pages), pair.rows());

        // What each item has to run, after rolling back to what is still true.
        let mut plans: Vec<Result<Plan>> = Vec::with_capacity(items.len());
        for (item, tokens) in items.iter_mut().zip(tokens) {
            let cached = &mut item.state.pairs[index];
            let plan = tokens.and_then(|tokens| {
                let prompt = cached.prompt.len();
                longest.check("guide", prompt, tokens.len().saturating_sub(prompt))?;
                check_rows(&weighted.format, rows, &tokens)?;
                Ok(Plan::new(cached, tokens))
            });
            plans.push(plan);
        }
        let mut copies = Vec::new();
        for (item, plan) in items.iter_mut().zip(&mut plans) {
            let keeps = plan.as_ref().map_or(0, |plan| plan.keeps);
            match item.state.pairs[index].sequence.append(keeps) {
                Ok(copy) => copies.extend(copy),
                Err(error) => *plan = Err(error),
            }
        }
        pair.copy_pages(&copies)?;
        let staying: Vec<_> = items
            .iter()
            .zip(&plans)
            .filter_map(|(item, plan)| Some((&item.state.pairs[index], plan.as_ref().ok()?)))
            .filter(|(_, plan)| plan.stays())
            .map(|(cached, plan)| (plan, &cached.sequence))
            .collect();
        let mut logps = run(&mut pair, &staying)?.into_iter();

        let (mut scores, mut tokens_new) = (Vec::with_capacity(items.len()), 0);
        for (item, plan) in items.iter_mut().zip(plans) {
            let cached = &mut item.state.pairs[index];
            if let Ok(plan) = &plan {
                tokens_new += plan.new_tokens(cached) as u64;
            }
            scores.push(match plan {
                Err(error) => Err(error),
                Ok(plan) if plan.stays() => {
                    cached.update(plan, logps.by_ref());
                    finite(cached.score(weighted.weight))
                }
                Ok(plan) => match run_and_forget(&mut pair, &plan, &cached.sequence) {
                    Err(error @ Error::OutOfPages { .. }) => Err(error),
                    Err(error) => return Err(error),
                    Ok(logps) => {
                        cached.update(plan, logps.into_iter());
                        finite(cached.score(weighted.weight))
                    }
                },
            });
        }
        Ok((scores, tokens_new))
    }
}

/// Tuned and untuned log-probabilities of each plan's targets, one after the other.
fn run<B: Backend>(pair: &mut Pair<B>, work: &[(&Plan, &Sequence)]) -> Result<Vec<[f32; 2]>> {
    let work = || work.iter().filter(|(plan, _)| plan.rows() > 0);
    let common = common(work().map(|(plan, _)| *plan));
    let spans: Vec<Span<'_>> = work()
        .zip(common)
        .map(|(&(plan, sequence), common)| Span {
            common,
            ..Span::new(plan.fed(), plan.start, sequence)
        })
        .collect();
    let targets: Vec<u32> = work().flat_map(|(plan, _)| plan.targets()).copied().collect();
    let [tuned, untuned] = pair.logprobs(&spans, &targets)?;
    Ok(tuned.into_iter().zip(untuned).map(|(tuned, untuned)| [tuned, untuned]).collect())
}

/// The same of one plan that is more than its hypothesis may keep: the pages of all that `cached` has no
/// room for are given back.
fn run_and_forget<B: Backend>(
    pair: &mut Pair<B>,
    plan: &Plan,
    cached: &Sequence,
) -> Result<Vec<[f32; 2]>> {
    let mut sequence = cached.clone();
    let copies: Vec<_> = sequence.append(plan.rows() - plan.keeps)?.into_iter().collect();
    pair.copy_pages(&copies)?;
    run(pair, &[(plan, &sequence)])
}

/// What the paper's code reads in place of a response: tokens decoded behind a prompt, its text
/// cut off, and special tokens taken out by tokenising the rest again.
fn reference_text(base: &Tokenizer, response: &Response) -> Result<String> {
    // Any prompt does that is plain text: it only keeps a space in front from being taken away.
    let prompt = base.encode("a", Bos::Never)?;
    let start = base.decode(&prompt, false)?.len();
    let whole = base.decode(&[&prompt[..], &response.tokens].concat(), false)?;
    base.decode(&base.encode(&whole[start..], Bos::Auto)?, true)
}

fn finite(score: Score) -> Result<Score> {
    if score.gain.is_finite() {
        Ok(score)
    } else {
        Err(Error::NotFinite { what: "the gain of a candidate".into() })
    }
}

impl<B: Backend> Guide for PairGuide<B> {
    type Prompt = PairPrompt;
    type State = PairState;

    fn reader(&self) -> Reader<PairPrompt> {
        let readings = self.readings();
        Arc::new(move |prompt, life, given| {
            let pairs = readings.iter().map(|reading| reading.prompt(prompt, life, given));
            Ok(PairPrompt { pairs: pairs.collect::<Result<_>>()? })
        })
    }

    fn pages_needed(&self, prompt: &PairPrompt, life: &Lifetime) -> Vec<usize> {
        self.readings()
            .iter()
            .zip(&prompt.pairs)
            .map(|(pair, prompt)| {
                // One text of any length is run at a time beside what stays cached.
                let longest = pair.longest_text(prompt, life).div_ceil(PAGE_LEN);
                pair.reserved(life).pages(prompt.tokens.len()).saturating_add(longest)
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
                let Rendered { text, tokens, given, share } = &prompt.pairs[index];
                let mut sequence = pair.pages.sequence();
                let rows = tokens.len().saturating_sub(1);
                sequence.append(rows)?;
                self.tokens_new += if index == 0 { rows as u64 } else { 0 };
                state.pairs.push(Cached {
                    prompt_text: text.clone(),
                    prompt: tokens.clone(),
                    given: given.clone(),
                    sequence,
                    share: *share,
                    tokens: tokens.to_vec(),
                    logps: vec![[0.0; 2]; tokens.len()],
                });
            }
            let spans: Vec<Span<'_>> = states
                .iter()
                .map(|state| &state.pairs[index])
                .filter(|cached| !cached.sequence.is_empty())
                .map(|cached| {
                    Span::new(&cached.tokens[..cached.tokens.len() - 1], 0, &cached.sequence)
                })
                .collect();
            pair.prefill(&spans)?;
        }
        Ok(states)
    }

    fn score(&mut self, items: &mut [Scoring<'_, PairState>]) -> Result<Vec<Result<Score>>> {
        let mut totals: Vec<Result<Score>> = items.iter().map(|_| Ok(Score::default())).collect();
        for index in 0..self.pairs.len() {
            // A response that one pair could not score is not run by the others.
            let good = items.iter_mut().zip(&totals).filter(|(_, total)| total.is_ok());
            let mut left: Vec<_> = good
                .map(|(Scoring { state, response }, _)| Scoring { state: &mut **state, response })
                .collect();
            let (scores, tokens_new) = self.score_pair(index, &mut left)?;
            self.tokens_new += if index == 0 { tokens_new } else { 0 };
            for (total, score) in totals.iter_mut().filter(|total| total.is_ok()).zip(scores) {
                if let Ok(sum) = *total {
                    *total = score.map(|score| add(sum, score, index));
                }
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
