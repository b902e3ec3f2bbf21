//! The demo's judge: a sentiment score that the guide never saw.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::folder::read_file;

/// A judge of all words of a language has fewer.
const MAX_BYTES: u64 = 64 << 20;

/// Logistic regression over words and pairs of words; trained by `tools/train_demo_models.py` on
/// text that none of the demo's models has seen.
#[derive(Deserialize)]
pub struct Judge {
    bias: f64,
    weights: HashMap<String, f64>,
    /// How often it is right about held-out snippets that people have rated.
    pub held_out_accuracy: f64,
}

impl Judge {
    /// Reads `judge.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |reason| Error::Checkpoint { path: path.to_owned(), reason };
        let bytes = read_file(path, MAX_BYTES)?.ok_or_else(|| refuse("is missing".into()))?;
        serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is not a judge: {error}")))
    }

    /// From −1, a pan, to 1, a rave: tanh of half the log-odds, over distinct words and pairs of
    /// neighbouring words.
    pub fn score(&self, text: &str) -> f64 {
        let text = text.to_lowercase();
        let words: Vec<&str> = text
            .split(|c: char| !(c.is_ascii_lowercase() || c == '\''))
            .filter(|word| !word.is_empty())
            .collect();
        let pairs = words.windows(2).map(|pair| pair.join(" "));
        let features: BTreeSet<String> =
            words.iter().map(|word| (*word).to_owned()).chain(pairs).collect();
        let sum: f64 = features.iter().filter_map(|feature| self.weights.get(feature)).sum();
        ((self.bias + sum) / 2.0).tanh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_counts_each_word_and_pair_once() {
        let weights = [("good", 1.0), ("not good", -3.0)];
        let judge = Judge {
            bias: 0.5,
            weights: weights.map(|(name, weight)| (name.to_owned(), weight)).into(),
            held_out_accuracy: 0.0,
        };
        let close = |text, logit: f64| (judge.score(text) - (logit / 2.0).tanh()).abs() < 1e-12;
        assert!(close("", 0.5));
        assert!(close("Good, GOOD good", 1.5));
        assert!(close("It's not good.", 0.5 + 1.0 - 3.0));
    }
}
