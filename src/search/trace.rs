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
    /// What this step added to its text: with those of the steps before it gives the whole. The
    /// beginning of a character that is not complete yet is left to the next step.
    pub text: String,
    /// Tokens of the whole response so far.
    pub tokens: usize,
    /// Its gain so far; that of the candidate it repeats, if it is a duplicate. None if it was lost.
    pub gain: Option<f64>,
    /// Its place among those that live on, from 0; none if it was dropped.
    pub rank: Option<usize>,
    /// It had ended before this step and was only compared again.
    pub carried: bool,
    /// An earlier candidate of this step with the same tokens, which stands for both.
    pub duplicate_of: Option<usize>,
    /// `stop` or `length` if it has ended.
    pub finish_reason: Option<&'static str>,
    /// Why the guide could not score its text; else it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl Chunk {
    pub(super) fn new<P, G>(candidates: &[Candidate<P, G>], order: &[usize]) -> Self {
        let mut ranks = vec![None; candidates.len()];
        for (rank, &index) in order.iter().enumerate() {
            ranks[index] = Some(rank);
        }
        let traced = candidates.iter().zip(ranks).enumerate().map(|(index, (candidate, rank))| {
            let response = &candidate.hypothesis.response;
            let scored = &candidates[candidate.duplicate_of.unwrap_or(index)];
            TracedCandidate {
                parent: candidate.parent,
                text: added(candidate),
                tokens: response.tokens.len(),
                gain: scored.lost.is_none().then_some(scored.hypothesis.score.gain),
                rank,
                carried: candidate.is_carried(),
                duplicate_of: candidate.duplicate_of,
                finish_reason: response.finish.map(|finish| finish.reason()),
                lost: scored.lost.as_ref().map(ToString::to_string),
            }
        });
        Self { candidates: traced.collect() }
    }
}

/// What a step added to a candidate's text.
fn added<P, G>(candidate: &Candidate<P, G>) -> String {
    let response = &candidate.hypothesis.response;
    let end = match response.finish {
        Some(_) => response.stop.unwrap_or(response.text.len()),
        None => response.whole_until(response.text.len()),
    };
    let start = match candidate.is_carried() {
        true => end,
        false => response.whole_until(candidate.inherited_text).min(end),
    };
    String::from_utf8_lossy(&response.text[start..end]).into_owned()
}
