//! What happened in each step, for people and tools.

use serde::Serialize;

use super::Candidate;

/// One step of a search: all candidates, in order, and who lived on.
#[derive(Clone, Debug, Serialize)]
pub struct Chunk {
    /// All candidates of the step.
    pub candidates: Vec<TracedCandidate>,
}

/// A candidate as it stood when the guide had scored it.
#[derive(Clone, Debug, Serialize)]
pub struct TracedCandidate {
    /// The beam it was forked from: the parent's `rank` in the step before; none in the first.
    pub parent: Option<usize>,
    /// What this step added to its text.
    pub text: String,
    /// Tokens of the whole response so far.
    pub tokens: usize,
    /// Its gain so far; that of the candidate it repeats, if it is a duplicate.
    pub gain: f64,
    /// Its place among those that live on, from 0; none if it was dropped.
    pub rank: Option<usize>,
    /// It had ended before this step and was only compared again.
    pub carried: bool,
    /// An earlier candidate of this step with the same tokens, which stands for both.
    pub duplicate_of: Option<usize>,
    /// `stop` or `length` if it has ended.
    pub finish_reason: Option<&'static str>,
}

impl Chunk {
    pub(super) fn new<P, G>(candidates: &[Candidate<P, G>], order: &[usize]) -> Self {
        let traced = candidates.iter().enumerate().map(|(index, candidate)| {
            let response = &candidate.hypothesis.response;
            let scored = &candidates[candidate.duplicate_of.unwrap_or(index)];
            let end = response.stop.unwrap_or(response.text.len());
            let added = &response.text[candidate.inherited_text.min(end)..end];
            TracedCandidate {
                parent: candidate.parent,
                text: String::from_utf8_lossy(added).into_owned(),
                tokens: response.tokens.len(),
                gain: scored.hypothesis.score.gain,
                rank: order.iter().position(|&kept| kept == index),
                carried: candidate.is_carried(),
                duplicate_of: candidate.duplicate_of,
                finish_reason: response.finish.map(|finish| finish.reason()),
            }
        });
        Self { candidates: traced.collect() }
    }
}
