//! What a search can be told.

use crate::error::{Error, Result};
use crate::proposer::{Finish, Lifetime, Sampling, StopStrings};

/// A search's settings. [`Settings::validate`] says which make no sense.
#[derive(Clone, Debug)]
pub struct Settings {
    /// W: hypotheses kept after each chunk.
    pub beam_width: usize,
    /// K: candidates forked from each of them.
    pub successors: usize,
    /// L: tokens of a chunk; none means up to the end.
    pub chunk_len: Option<usize>,
    /// Tokens of a response at most.
    pub max_new_tokens: usize,
    /// How the base model's tokens are picked.
    pub sampling: Sampling,
    /// Names all random numbers.
    pub seed: u64,
    /// Texts that end a response.
    pub stop: StopStrings,
    /// Repeat finished hypotheses, keep duplicates and order candidates as the paper's code does.
    pub compat: bool,
}

impl Settings {
    /// Refuses what cannot work, naming the command-line flag.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("--beam-width", self.beam_width),
            ("--successors", self.successors),
            ("--chunk-len", self.chunk_len.unwrap_or(1)),
            ("--max-new-tokens", self.max_new_tokens),
        ];
        for (flag, value) in at_least_one {
            if value == 0 {
                return Err(Error::flag(flag, "must be at least 1"));
            }
        }
        if self.max_new_tokens > Self::MAX_TOKENS {
            let reason = format!("must be at most {}", Self::MAX_TOKENS);
            return Err(Error::flag("--max-new-tokens", reason));
        }
        if self.beam_width.saturating_mul(self.successors) > Self::MAX_CANDIDATES {
            let reason = format!("times --successors must be at most {}", Self::MAX_CANDIDATES);
            return Err(Error::flag("--beam-width", reason));
        }
        let Sampling { temperature, top_p, .. } = self.sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::flag("--temperature", "must be a number from 0 upwards"));
        }
        if self.compat && temperature == 0.0 {
            let reason = "must be above 0 with --compat reference, where 0 would mean 1; --top-k 1 \
                          takes the most probable token there too";
            return Err(Error::flag("--temperature", reason));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::flag("--top-p", "must be above 0 and at most 1"));
        }
        Ok(())
    }

    /// Candidates of one step at most.
    pub const MAX_CANDIDATES: usize = 1 << 16;

    /// Tokens of a response at most: more than any model's context.
    pub const MAX_TOKENS: usize = 1 << 30;

    /// Whether a guide scores an end-of-sequence token behind a response that ended like this: the paper's
    /// code does so also behind one that was cut.
    pub fn scores_end(&self, finish: Finish) -> bool {
        finish == Finish::Eos || self.compat
    }

    /// How large the search can grow.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime {
            response: self.max_new_tokens,
            chunk: self.chunk_len.unwrap_or(usize::MAX),
            beams: self.beam_width,
            candidates: self.beam_width.saturating_mul(self.successors),
        }
    }
}
