//! Floor 5: the method. One prompt's search as a state machine; it runs no model itself.
//!
//! Weak-to-strong search, chunk-level beam search (Zhou et al., arXiv 2405.19262, algorithm 1):
//!
//! ```text
//! expand   each live beam is forked into K candidates (the first step: W·K from the prompt)
//!          … the proposer continues each by a chunk of L tokens …
//! settle   candidates at the token limit end; equal ones are kept once
//!          … the guide scores the rest …
//! select   the W with the highest gain live on
//! ```
//!
//! until all beams have ended; the answer is the one with the highest gain. Best-of-N is W=1,
//! K=N, L=∞; plain sampling is W=1, K=1, L=∞.
//!
//! A candidate whose text the guide cannot score, since it outgrows its context for instance, is never kept.
//!
//! Where this differs from the paper's code, on purpose: a finished hypothesis stays in the pool
//! once (there it is repeated K times, and copies of it can fill all W places); candidates with
//! equal tokens are kept once; ties keep candidate order; a candidate cut by the token limit is
//! not scored as if it had ended. [`Settings::compat`] restores theirs.

mod method;
mod settings;
mod trace;

use std::collections::HashMap;

pub use method::{ChunkLen, Method, Shape, Shaped};
pub use settings::Settings;
pub use trace::{Chunk, TracedCandidate};

use crate::error::{Error, Result};
use crate::guide::{Score, Scoring};
use crate::philox::Draw;
use crate::proposer::{Draft, Finish, Response, Unfinished};

/// A response in the making, with what proposer (`P`) and guide (`G`) have cached of it.
#[derive(Clone)]
struct Hypothesis<P, G> {
    proposer: P,
    guide: G,
    response: Response,
    score: Score,
}

/// A forked beam before selection.
struct Candidate<P, G> {
    /// The beam it comes from, among those kept last; none comes from the prompt.
    parent: Option<usize>,
    /// Its number in this step, which names its random numbers.
    number: u32,
    /// Tokens that it had before this step.
    inherited: usize,
    /// Bytes of text that it had before this step.
    inherited_text: usize,
    /// An earlier candidate with the same tokens.
    duplicate_of: Option<usize>,
    /// Why it has not been continued.
    unfinished: Option<Unfinished>,
    /// Why the guide cannot score it: it is never kept.
    lost: Option<Error>,
    hypothesis: Hypothesis<P, G>,
}

impl<P, G> Candidate<P, G> {
    /// It had ended before this step and only waits to be compared again.
    fn is_carried(&self) -> bool {
        self.hypothesis.response.finish.is_some()
            && self.hypothesis.response.tokens.len() == self.inherited
            && self.parent.is_some()
    }
}

/// The answer of a search.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The winning response.
    pub response: Response,
    /// Its score.
    pub score: Score,
    /// Why it goes no further.
    pub finish: Finish,
    /// Every step of the search, where they are kept.
    pub trace: Vec<Chunk>,
}

/// One prompt's search.
pub struct Search<P, G> {
    settings: Settings,
    /// Names the search's random numbers.
    stream: u64,
    /// Kept states, best first; at the start the prompt's alone.
    beams: Vec<Hypothesis<P, G>>,
    /// The step under way; empty between steps.
    candidates: Vec<Candidate<P, G>>,
    /// Tokens that live candidates still need in this step.
    remaining: usize,
    /// Of these, those that the proposer is at.
    handed_out: usize,
    /// Steps so far.
    steps: usize,
    /// These steps, where a reader will want them.
    trace: Option<Vec<Chunk>>,
}

impl<P: Clone, G: Clone> Search<P, G> {
    /// A search from a prompt's states. `stream` tells its random numbers from other searches'.
    pub fn new(settings: Settings, stream: u64, proposer: P, guide: G) -> Self {
        let root =
            Hypothesis { proposer, guide, response: Response::default(), score: Score::default() };
        Self {
            settings,
            stream,
            beams: vec![root],
            candidates: Vec::new(),
            remaining: 0,
            handed_out: 0,
            steps: 0,
            trace: Some(Vec::new()),
        }
    }

    /// The same without a trace, which grows with every step.
    pub fn untraced(self) -> Self {
        Self { trace: None, ..self }
    }

    /// The settings it runs under.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The steps so far; none where they are not kept.
    pub fn trace(&self) -> &[Chunk] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// The bytes that every hypothesis still in play begins with: so will the answer.
    pub fn agreed(&self) -> &[u8] {
        let candidates = self.candidates.iter().map(|candidate| &candidate.hypothesis);
        // Between steps the beams, within one their forks.
        let mut texts = self
            .beams
            .iter()
            .chain(candidates)
            .map(|hypothesis| hypothesis.response.settled(&self.settings.stop));
        let first = texts.next().unwrap_or_default();
        texts.fold(first, |agreed, text| {
            let common = agreed.iter().zip(text).take_while(|(a, b)| a == b).count();
            &agreed[..common]
        })
    }

    /// Forks the beams into this step's candidates.
    pub fn expand(&mut self) {
        assert!(self.candidates.is_empty(), "the last step has not been selected from");
        let Settings { beam_width, successors, compat, .. } = self.settings;
        let beams = std::mem::take(&mut self.beams);
        let first = self.steps == 0;
        let plan: Vec<usize> = if first {
            vec![0; beam_width * successors]
        } else if compat {
            // Their order: all beams' first successors, then all second ones, …
            (0..beams.len() * successors).map(|number| number % beams.len()).collect()
        } else {
            let forks = |beam: usize| if ended(&beams[beam]) { 1 } else { successors };
            (0..beams.len()).flat_map(|beam| vec![beam; forks(beam)]).collect()
        };
        let mut successor = vec![0; beams.len()];
        for parent in plan {
            let number = if first || compat {
                self.candidates.len()
            } else {
                parent * successors + successor[parent]
            };
            successor[parent] += 1;
            let hypothesis = beams[parent].clone();
            self.candidates.push(Candidate {
                parent: (!first).then_some(parent),
                number: number as u32,
                inherited: hypothesis.response.tokens.len(),
                inherited_text: hypothesis.response.text.len(),
                duplicate_of: None,
                unfinished: None,
                lost: None,
                hypothesis,
            });
        }
        let written = self.live_candidates().map(|c| c.inherited).max().unwrap_or(0);
        self.remaining = self
            .settings
            .chunk_len
            .unwrap_or(usize::MAX)
            .min(self.settings.max_new_tokens - written);
    }

    fn live_candidates(&self) -> impl Iterator<Item = &Candidate<P, G>> {
        self.candidates.iter().filter(|candidate| !ended(&candidate.hypothesis))
    }

    /// Candidates of the step under way.
    pub fn candidates(&self) -> usize {
        self.candidates.len()
    }

    /// Tokens that live candidates still need until the guide must look at them.
    pub fn remaining(&self) -> usize {
        if self.live_candidates().next().is_none() { 0 } else { self.remaining }
    }

    /// The live candidates, to be extended by `steps` tokens, at most [`Search::remaining`]; then
    /// comes [`Search::advance`].
    pub fn drafts(&mut self, steps: usize) -> impl Iterator<Item = Draft<'_, P>> {
        assert!(steps <= self.remaining, "a chunk must not be overrun");
        self.handed_out = steps;
        let Settings { seed, sampling, ref stop, .. } = self.settings;
        let stream = self.stream;
        self.candidates.iter_mut().filter(|c| !ended(&c.hypothesis)).map(move |candidate| Draft {
            state: &mut candidate.hypothesis.proposer,
            response: &mut candidate.hypothesis.response,
            steps,
            sampling,
            stop,
            draw: Draw { seed, stream, candidate: candidate.number, position: 0 },
            unfinished: &mut candidate.unfinished,
        })
    }

    /// Takes note of what the proposer has done with the drafts; an error is the search's end.
    pub fn advance(&mut self) -> Result<()> {
        let unfinished: Vec<Unfinished> =
            self.candidates.iter_mut().filter_map(|c| c.unfinished.take()).collect();
        let later = !unfinished.is_empty();
        for reason in unfinished {
            if let Unfinished::Failed(error) = reason {
                return Err(error);
            }
        }
        let steps = std::mem::take(&mut self.handed_out);
        self.remaining -= if later { 0 } else { steps };
        Ok(())
    }

    /// Ends candidates that reached the token limit and finds duplicates.
    pub fn settle(&mut self) {
        for candidate in &mut self.candidates {
            let response = &mut candidate.hypothesis.response;
            if response.tokens.len() >= self.settings.max_new_tokens && response.finish.is_none() {
                response.finish = Some(Finish::Length);
            }
        }
        if self.settings.compat {
            return;
        }
        // Equal tokens (or, from a proposer that has none, equal text) and both ended or both live.
        let responses = self.candidates.iter().map(|candidate| &candidate.hypothesis.response);
        let keys = responses.map(|response| (&response.tokens, &response.text, response.finish));
        let mut firsts = HashMap::new();
        let earlier = keys.enumerate().map(|(index, key)| {
            Some(*firsts.entry(key).or_insert(index)).filter(|&first| first < index)
        });
        let duplicates: Vec<_> = earlier.collect();
        for (candidate, first) in self.candidates.iter_mut().zip(duplicates) {
            candidate.duplicate_of = first;
        }
    }

    /// The candidates that the guide must score, in order: neither duplicates nor scored before.
    pub fn scorings(&mut self) -> impl Iterator<Item = Scoring<'_, G>> {
        self.candidates.iter_mut().filter(|c| needs_score(c)).map(|candidate| Scoring {
            state: &mut candidate.hypothesis.guide,
            response: &candidate.hypothesis.response,
        })
    }

    /// Keeps the best, given the scores that [`Search::scorings`] asked for. A candidate whose text cannot be
    /// scored has lost. Any other error is the search's end, and so is that reason where no candidate is left.
    pub fn select(&mut self, scores: impl IntoIterator<Item = Result<Score>>) -> Result<()> {
        let mut scores = scores.into_iter();
        for candidate in self.candidates.iter_mut().filter(|c| needs_score(c)) {
            match scores.next().expect("a score for each candidate") {
                Ok(score) => candidate.hypothesis.score = score,
                Err(error) if error.is_of_the_text() => candidate.lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        let candidates = std::mem::take(&mut self.candidates);
        let is_left = |candidate: &Candidate<P, G>| {
            candidate.duplicate_of.is_none() && candidate.lost.is_none()
        };
        let mut order: Vec<usize> =
            (0..candidates.len()).filter(|&i| is_left(&candidates[i])).collect();
        if order.is_empty() {
            let reason = candidates.into_iter().find_map(|candidate| candidate.lost);
            return Err(reason.expect("all are lost, or repeat one that is"));
        }
        let gain = |i: usize| candidates[i].hypothesis.score.gain;
        // Stable: ties keep candidate order. Gains are finite, the guide has seen to that.
        order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)));
        order.truncate(self.settings.beam_width);
        self.steps += 1;
        if let Some(trace) = &mut self.trace {
            trace.push(Chunk::new(&candidates, &order));
        }
        let mut slots: Vec<_> = candidates.into_iter().map(|c| Some(c.hypothesis)).collect();
        self.beams = order.into_iter().filter_map(|index| slots[index].take()).collect();
        Ok(())
    }

    /// The answer, once all beams have ended.
    pub fn outcome(&mut self) -> Option<Outcome> {
        if self.steps == 0 || !self.candidates.is_empty() || !self.beams.iter().all(ended) {
            return None;
        }
        let best = self.beams.first()?;
        Some(Outcome {
            finish: best.response.finish?,
            response: best.response.clone(),
            score: best.score,
            trace: self.trace.as_mut().map(std::mem::take).unwrap_or_default(),
        })
    }
}

fn ended<P, G>(hypothesis: &Hypothesis<P, G>) -> bool {
    hypothesis.response.finish.is_some()
}

fn needs_score<P, G>(candidate: &Candidate<P, G>) -> bool {
    candidate.duplicate_of.is_none() && !candidate.is_carried()
}
