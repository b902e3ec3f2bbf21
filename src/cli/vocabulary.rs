//! Whether models mean the same by their tokens, and which of them a pair can score.

use super::models::{Described, DescribedPair, GuideTokensFlag, Plan};
use crate::error::{Error, Result};
use crate::guide::GuideTokens;

/// How the base model's responses become this pair's tokens.
pub fn guide_tokens(
    base: Option<&Described>,
    pair: &DescribedPair,
    plan: &Plan,
) -> Result<GuideTokens> {
    let tokens = match (plan.guide_tokens, base) {
        (GuideTokensFlag::Ids, None) => {
            let reason = "must be text with --base-url: a server does not tell its tokens";
            return Err(Error::flag("--guide-tokens", reason));
        }
        (GuideTokensFlag::Ids, Some(_)) if plan.compat => {
            return Err(Error::flag("--guide-tokens", "must be text with --compat reference"));
        }
        (GuideTokensFlag::Ids, Some(base)) => {
            require_ids(base, pair, "use --guide-tokens text")?;
            GuideTokens::Ids
        }
        (GuideTokensFlag::Auto, Some(base)) if !plan.compat => {
            require_ids(base, pair, "").map_or(GuideTokens::Text, |()| GuideTokens::Ids)
        }
        _ => GuideTokens::Text,
    };
    if let (GuideTokens::Text, Some(end)) = (tokens, pair.tuned.end()) {
        require_end(pair, &pair.tuned, end, "name one as eos_token that tuned and untuned have")?;
    }
    Ok(tokens)
}

/// An error if the base model's ids mean other tokens to this pair, or one that ends a response is beyond it.
pub fn require_ids(base: &Described, pair: &DescribedPair, advice: &str) -> Result<()> {
    pair.require_tokens_of(base, advice)?;
    base.eos().into_iter().try_for_each(|end| require_end(pair, base, end, advice))
}

impl DescribedPair {
    /// An error if another model's ids, which come to this pair, mean other tokens to one of the twins.
    pub fn require_tokens_of(&self, other: &Described, advice: &str) -> Result<()> {
        require_same_vocabulary(other, &self.tuned, advice)?;
        // Merges take long to compare, and the twins have the same ones.
        let Self { untuned, .. } = self;
        other.tokenizer.same_ids(&untuned.tokenizer).map_err(differ(other, untuned, advice))
    }

    /// The twin with the fewest rows, and how many: ids from there on cannot be scored.
    fn least_rows(&self) -> (&Described, usize) {
        let twins = [&self.tuned, &self.untuned].map(|twin| (twin, twin.config.vocab));
        twins.into_iter().min_by_key(|(_, rows)| *rows).expect("there are two")
    }
}

/// An error if an id that both have means different tokens, or texts are merged otherwise.
pub fn require_same_vocabulary(a: &Described, b: &Described, advice: &str) -> Result<()> {
    a.tokenizer.same_vocabulary(&b.tokenizer).map_err(differ(a, b, advice))
}

/// An [`Error::VocabularyMismatch`] for `map_err`.
fn differ(a: &Described, b: &Described, advice: &str) -> impl FnOnce(String) -> Error {
    let (a, b) = (a.name(), b.name());
    move |reason| Error::VocabularyMismatch { a, b, reason: format!("{reason}; {advice}") }
}

/// An error if `pair` cannot score token `end`, with which texts of `ender` end.
fn require_end(pair: &DescribedPair, ender: &Described, end: u32, advice: &str) -> Result<()> {
    let (least, rows) = pair.least_rows();
    if (end as usize) < rows {
        return Ok(());
    }
    let name = ender.tokenizer.name(end).unwrap_or_default();
    let least_name = least.name();
    let reason = format!(
        "token {end} ({name:?}), with which responses end, is beyond the {rows} entries of {least_name}"
    );
    Err(differ(ender, least, advice)(reason))
}
