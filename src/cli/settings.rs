//! Flags that say how to search, shared by all commands that do.

use super::base::Base;
use super::models::{self, BosFlag, Compat, GuideArgs, GuideTokensFlag, Plan};
use crate::error::{Error, Result};
use crate::proposer::Sampling;
use crate::search::{ChunkLen, Method, Settings, Shape, Shaped};
use crate::server::{Seed, TopK};
use crate::text::StopStrings;

#[derive(clap::Args, Clone, Debug)]
pub struct SearchArgs {
    /// How to answer
    #[arg(long, value_enum, default_value = "cbs")]
    pub method: Method,
    /// W: beams kept after each chunk [default: 4; eft: 1]
    #[arg(short = 'w', long, value_name = "N")]
    pub beam_width: Option<usize>,
    /// K: candidates forked from each beam [default: 4; bon: 16; eft: 1]
    #[arg(short = 'k', long, value_name = "N")]
    pub successors: Option<usize>,
    /// L: tokens of a chunk, or inf [default: 10; eft: inf]
    #[arg(short = 'l', long, value_name = "N|inf")]
    pub chunk_len: Option<ChunkLen>,
    /// Tokens of a response at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, value_name = "F", default_value_t = 0.7, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw from the N most probable tokens; 0 or -1 from all
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true, value_parser = top_k)]
    pub top_k: u32,
    /// Draw from the most probable tokens that reach this mass
    #[arg(long, value_name = "F", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Names all random numbers [default: 1; serve and stdio: another one for each request]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    pub seed: Option<u64>,
    /// eft: how far the base model may be moved; the guide's log-ratio is divided by it
    /// [default: 1]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub beta: Option<f32>,
    /// End a response where this text appears; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// The base model's prompt, with {prompt} in it
    #[arg(long, value_name = "TEXT")]
    pub base_template: Option<String>,
    /// How the guide gets a response: its tokens, or its text tokenised again
    #[arg(long, value_enum, default_value = "auto")]
    pub guide_tokens: GuideTokensFlag,
    /// Do as the paper's code does where that can be observed
    #[arg(long, value_enum)]
    pub compat: Option<Compat>,
}

/// A seed, as requests have it.
fn seed(text: &str) -> Result<u64, String> {
    text.parse().map(|Seed(seed)| seed)
}

/// How many tokens to draw from, as requests have it.
fn top_k(text: &str) -> Result<u32, String> {
    text.parse().map(|TopK(count)| count)
}

impl SearchArgs {
    /// Names all random numbers where nobody says otherwise.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(1)
    }

    /// How far eft may move the base model; no other method does.
    pub fn beta(&self) -> Option<f32> {
        (self.method == Method::Eft).then(|| self.beta.unwrap_or(1.0))
    }

    /// What the flags say of W, K and L.
    pub fn shape(&self) -> Shape {
        let Self { beam_width, successors, chunk_len, .. } = *self;
        Shape { beam_width, successors, chunk_len }
    }

    /// The search's settings; flags that mean nothing for the method, or with this guide, are
    /// refused.
    pub fn settings(&self, guide: &GuideArgs) -> Result<Settings> {
        let Shaped { beam_width, successors, chunk_len } = self.method.shape(self.shape())?;
        if self.method != Method::Eft && self.beta.is_some() {
            let reason = format!("has no meaning with --method {}", self.method.name());
            return Err(Error::flag("--beta", reason));
        }
        if self.beta.is_some_and(|beta| !(beta.is_finite() && beta > 0.0)) {
            return Err(Error::flag("--beta", "must be above 0"));
        }
        let settings = Settings {
            beam_width,
            successors,
            chunk_len,
            max_new_tokens: self.max_new_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
            },
            seed: self.seed(),
            stop: StopStrings::new(self.stop.clone())?,
            compat: self.compat.is_some(),
        };
        settings.validate()?;
        if settings.compat && guide.bos == BosFlag::Always {
            return Err(Error::flag("--bos", "must be never with --compat reference"));
        }
        if self.method != Method::Sample && guide.pairs().is_empty() {
            let reason = "and --untuned (or --guide) are needed for any method but sample";
            return Err(Error::flag("--tuned", reason));
        }
        if guide.pairs().is_empty() {
            let asked = guide.guide_template.is_some().then_some("--guide-template");
            let how = self.guide_tokens != GuideTokensFlag::Auto;
            if let Some(flag) = asked.or(how.then_some("--guide-tokens")) {
                return Err(Error::flag(flag, "has no meaning without a guide"));
            }
        }
        Ok(settings)
    }

    /// What must be loaded for `in_flight` searches like these at once.
    pub fn plan(&self, base: Base, settings: &Settings, in_flight: usize) -> Result<Plan> {
        Ok(Plan {
            base,
            base_template: models::template("--base-template", self.base_template.as_deref())?,
            guide_tokens: self.guide_tokens,
            compat: settings.compat,
            guidance: self.beta().map(|beta| 1.0 / beta),
            least: settings.lifetime(),
            life: settings.lifetime(),
            in_flight,
        })
    }
}
