//! From flags to models that are ready to search.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use clap::ValueEnum;

use super::base::{Base, DescribedBase};
pub use super::described::{Described, fingerprint};
pub use super::memory::Bytes;
use super::memory::Needs;
use super::vocabulary::{guide_tokens, require_ids, require_same_vocabulary};
use crate::backend::Backend;
use crate::engine::{Config, Engine, Limits, Model, Pair};
use crate::error::{Error, Result};
use crate::guide::{GuideTokens, PairGuide, WeightedPair, reserved};
use crate::kv_cache::{Lifetime, PAGE_LEN};
use crate::proposer::{BaseProposer, Guidance, LocalProposer, RemoteProposer};
use crate::text::{Bos, Date, Prompt, PromptFormat, Template, Tokenizer};

/// Rows that run together.
pub const ROWS: usize = 512;
/// Rows whose logits exist at the same time.
pub const LOGIT_ROWS: usize = 256;

/// `--bos`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BosFlag {
    /// What the tokenizer itself adds, unless the text already begins with it.
    Auto,
    /// Always one.
    Always,
    /// None.
    Never,
}

/// `--guide-tokens`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuideTokensFlag {
    /// `ids` where the tokenizers are the same, else `text`.
    Auto,
    /// The base model's tokens as they are.
    Ids,
    /// The text, tokenised again by the guide.
    Text,
}

/// `--compat`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// The paper's own code.
    Reference,
}

/// The guide's models and how they are asked.
#[derive(clap::Args, Clone, Debug)]
pub struct GuideArgs {
    /// Folder of the tuned small model
    #[arg(long, value_name = "DIR", requires = "untuned")]
    pub tuned: Option<PathBuf>,
    /// Folder of the untuned small model
    #[arg(long, value_name = "DIR", requires = "tuned")]
    pub untuned: Option<PathBuf>,
    /// A further pair; gains add up with their weights
    #[arg(long = "guide", value_name = "TUNED,UNTUNED[,WEIGHT]")]
    pub guides: Vec<GuideFlag>,
    /// The guide's prompt, with {prompt} in it
    #[arg(long, value_name = "TEXT")]
    pub guide_template: Option<String>,
    /// Use the models' own chat templates
    #[arg(long)]
    pub chat: bool,
    /// The system message of conversations that have none: of --chat, and of prompts that are messages. It may be
    /// empty
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The day that chat templates are told [default: today, UTC]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<Date>,
    /// Beginning-of-sequence tokens
    #[arg(long, value_enum, default_value = "auto")]
    pub bos: BosFlag,
}

/// How every model's prompts become what it reads.
#[derive(Clone)]
pub struct Reading {
    /// Whether they become messages in the models' own chat templates.
    pub chat: bool,
    /// The system message of conversations that have none.
    pub system: Option<Arc<str>>,
    /// The day that these are told, today if none.
    pub date: Option<Date>,
    /// What stands at the beginning.
    pub bos: Bos,
}

impl Reading {
    /// How one model reads prompts within a template.
    pub fn format(&self, tokenizer: Arc<Tokenizer>, template: Template) -> PromptFormat {
        let Self { chat, system, date, bos } = self.clone();
        PromptFormat { tokenizer, template, chat, system, date, bos }
    }
}

impl GuideArgs {
    /// All pairs: --tuned and --untuned, then each --guide.
    pub fn pairs(&self) -> Vec<GuideFlag> {
        let first = self.tuned.iter().zip(&self.untuned).map(|(tuned, untuned)| GuideFlag {
            tuned: tuned.clone(),
            untuned: untuned.clone(),
            weight: 1.0,
        });
        first.chain(self.guides.iter().cloned()).collect()
    }

    pub fn reading(&self) -> Reading {
        let bos = match self.bos {
            BosFlag::Auto => Bos::Auto,
            BosFlag::Always => Bos::Always,
            BosFlag::Never => Bos::Never,
        };
        let system = self.system.as_deref().map(Arc::from);
        Reading { chat: self.chat, system, date: self.date, bos }
    }

    /// Refuses a system message that no prompt would have.
    pub fn check_system<'a>(&self, mut prompts: impl Iterator<Item = &'a Prompt>) -> Result<()> {
        let is_text = |prompt: &Prompt| matches!(prompt, Prompt::Text(_));
        if self.system.is_some() && !self.chat && prompts.any(is_text) {
            let reason =
                "needs --chat, or prompts that are messages: a text prompt has no system message";
            return Err(Error::flag("--system", reason));
        }
        Ok(())
    }

    fn template(&self) -> Result<Template> {
        template("--guide-template", self.guide_template.as_deref())
    }
}

/// A template flag, or the prompt alone.
pub fn template(flag: &str, text: Option<&str>) -> Result<Template> {
    text.map_or_else(|| Ok(Template::default()), |text| Template::parse(flag, text))
}

/// `--guide TUNED,UNTUNED[,WEIGHT]`
#[derive(Clone, Debug, PartialEq)]
pub struct GuideFlag {
    pub tuned: PathBuf,
    pub untuned: PathBuf,
    pub weight: f64,
}

impl FromStr for GuideFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').collect();
        let (tuned, untuned, weight) = match parts[..] {
            [tuned, untuned] => (tuned, untuned, "1"),
            [tuned, untuned, weight] => (tuned, untuned, weight),
            _ => return Err("must be TUNED,UNTUNED or TUNED,UNTUNED,WEIGHT".into()),
        };
        let weight =
            weight.trim().parse::<f64>().map_err(|_| "has a weight that is not a number")?;
        // Gains stay finite, also in f32.
        if weight.is_nan() || weight.abs() > f32::MAX.into() {
            return Err("has a weight beyond all measure".into());
        }
        Ok(Self { tuned: tuned.into(), untuned: untuned.into(), weight })
    }
}

/// One pair that has been described but not loaded.
pub struct DescribedPair {
    pub tuned: Described,
    pub untuned: Described,
    pub weight: f64,
    pub tokens: GuideTokens,
}

impl DescribedPair {
    fn open(flag: &GuideFlag) -> Result<Self> {
        let tuned = Described::open(&flag.tuned)?.warned();
        let untuned = Described::open(&flag.untuned)?.warned();
        require_same_vocabulary(&tuned, &untuned, "tuned and untuned must be twins")?;
        Ok(Self { tuned, untuned, weight: flag.weight, tokens: GuideTokens::Text })
    }

    fn configs(&self) -> [Config; 2] {
        [self.tuned.config.clone(), self.untuned.config.clone()]
    }
}

/// What a search needs besides the guide's own flags.
pub struct Plan {
    pub base: Base,
    pub base_template: Template,
    pub guide_tokens: GuideTokensFlag,
    pub compat: bool,
    /// 1/β where tokens are proposed by emulated fine-tuning.
    pub guidance: Option<f32>,
    /// The search that must be possible, whatever else is.
    pub least: Lifetime,
    /// The largest search, and how many run at once.
    pub life: Lifetime,
    pub in_flight: usize,
}

/// A base model and its guide, ready.
pub struct Ready<B: Backend> {
    pub proposer: BaseProposer<B>,
    pub guide: PairGuide<B>,
}

/// Loads everything that a search needs.
pub fn load<B: Backend>(
    backend: &Arc<B>,
    plan: &Plan,
    guide: &GuideArgs,
    kv_memory: Option<Bytes>,
) -> Result<Ready<B>> {
    let (mut reading, guide_template) = (guide.reading(), guide.template()?);
    if plan.compat {
        reading.bos = Bos::Never;
    }
    let base = DescribedBase::open(plan, &reading)?;
    let mut pairs =
        guide.pairs().iter().map(DescribedPair::open).collect::<Result<Vec<DescribedPair>>>()?;
    for pair in &mut pairs {
        pair.tokens = guide_tokens(base.folder(), pair, plan)?;
        // Candidates end on their own, and that is scored.
        if pair.tokens == GuideTokens::Text && pair.tuned.end().is_none() {
            return Err(Error::Tokenizer {
                path: pair.tuned.folder.join("tokenizer_config.json"),
                reason:
                    "has no eos_token, with which the guide would score the end of a response; \
                         name one"
                        .into(),
            });
        }
        // A guide that takes the base's ids has been compared with it already.
        if let (Some(base), Some(_), GuideTokens::Text) =
            (base.folder(), plan.guidance, pair.tokens)
        {
            let advice = "--method eft adds logits token by token";
            require_ids(base, pair, advice)?;
        }
        if plan.guidance.is_some_and(|strength| !(strength * pair.weight as f32).is_finite()) {
            return Err(Error::flag(
                "--beta",
                "is so small that a guide's weight / beta overflows",
            ));
        }
    }
    let mut prompted = base.folder().into_iter().chain(pairs.iter().map(|pair| &pair.tuned));
    prompted.try_for_each(|model| model.check(&reading))?;
    let contexts = pairs.iter().flat_map(|pair| [&pair.tuned, &pair.untuned]).chain(base.folder());
    let context = contexts.map(|model| model.config.context).max().unwrap_or(0);
    // Text that another tokenizer reads may need more pages.
    let search = reserved(&plan.life, context).pages(context) + context.div_ceil(PAGE_LEN);
    let enough = plan.in_flight.saturating_mul(search);
    let needs = Needs {
        base: base.folder().map(|base| (base.config.clone(), base.eos().len())),
        pairs: pairs.iter().map(DescribedPair::configs).collect(),
        caches: if plan.guidance.is_some() { 2 } else { 1 },
        enough,
        // Of a prompt of one token.
        least: plan.least.pages(1),
        logit_rows: LOGIT_ROWS,
    };
    let (model, pairs) = needs.load(&**backend, kv_memory, || {
        let base = base.folder().map(|base| Model::open(&**backend, &base.folder, None));
        let pairs = pairs.into_iter().map(|pair| LoadedPair::open(&**backend, pair));
        Ok((base.transpose()?, pairs.collect::<Result<Vec<_>>>()?))
    })?;
    let limits = needs.divide(&**backend, kv_memory)?;

    let longest_token = base
        .folder()
        .map_or(RemoteProposer::TOKEN_BYTES, |described| described.tokenizer.longest_token());
    let compat = base.folder().filter(|_| plan.compat).map(|base| base.tokenizer.clone());
    let weighted = pairs
        .into_iter()
        .map(|pair| {
            let pair = pair.build(backend, limits, needs.caches, &guide_template, &reading)?;
            Ok(WeightedPair { longest_token, ..pair })
        })
        .collect::<Result<Vec<_>>>()?;
    let proposer = match base {
        DescribedBase::Server(proposer) => BaseProposer::Remote(proposer),
        DescribedBase::Folder(base) => {
            let model = model.expect("a folder's model was loaded");
            let engine = Engine::new(backend.clone(), model, limits)?;
            let guidance = plan.guidance.map_or_else(Vec::new, |strength| {
                let shifted = weighted.iter().map(|pair| Guidance {
                    pair: pair.pair.clone(),
                    format: pair.format.clone(),
                    weight: strength * pair.weight as f32,
                });
                shifted.collect()
            });
            let eos = base.eos();
            let format = reading.format(base.tokenizer, plan.base_template.clone());
            let local = LocalProposer::new(engine, format, eos, guidance)?;
            BaseProposer::Local(Box::new(local))
        }
    };
    Ok(Ready { proposer, guide: PairGuide::new(weighted, compat) })
}

/// Loads pairs alone, for scoring texts.
pub fn load_guide<B: Backend>(
    backend: &Arc<B>,
    guide: &GuideArgs,
    tokens: GuideTokensFlag,
    kv_memory: Option<Bytes>,
) -> Result<(PairGuide<B>, Arc<Tokenizer>)> {
    let mut pairs =
        guide.pairs().iter().map(DescribedPair::open).collect::<Result<Vec<DescribedPair>>>()?;
    let Some(first) = pairs.first() else {
        return Err(Error::flag("--tuned", "and --untuned (or --guide) are needed"));
    };
    let tokenizer = first.tuned.tokenizer.clone();
    if tokens == GuideTokensFlag::Ids {
        let advice = "use --guide-tokens text";
        let mut others = pairs.iter().skip(1);
        others.try_for_each(|pair| pair.require_tokens_of(&first.tuned, advice))?;
    }
    // Ids are of the first pair's vocabulary.
    for pair in &mut pairs {
        let text = tokens == GuideTokensFlag::Text
            || tokenizer.same_vocabulary(&pair.tuned.tokenizer).is_err();
        pair.tokens = if text { GuideTokens::Text } else { GuideTokens::Ids };
    }
    let context = pairs.iter().map(|pair| pair.tuned.config.context).max().unwrap_or(0);
    let needs = Needs {
        base: None,
        pairs: pairs.iter().map(DescribedPair::configs).collect(),
        caches: 1,
        enough: 64 * context.div_ceil(PAGE_LEN),
        least: 1,
        logit_rows: 1,
    };
    let pairs = needs.load(&**backend, kv_memory, || {
        let pairs = pairs.into_iter().map(|pair| LoadedPair::open(&**backend, pair));
        pairs.collect::<Result<Vec<_>>>()
    })?;
    let limits = needs.divide(&**backend, kv_memory)?;
    let (template, reading) = (guide.template()?, guide.reading());
    let weighted = pairs
        .into_iter()
        .map(|pair| pair.build(backend, limits, 1, &template, &reading))
        .collect::<Result<Vec<_>>>()?;
    Ok((PairGuide::new(weighted, None), tokenizer))
}

/// A pair whose weights are there.
struct LoadedPair<B: Backend> {
    described: DescribedPair,
    tuned: Model<B>,
    untuned: Model<B>,
}

impl<B: Backend> LoadedPair<B> {
    /// Loads both; matrices that are equal in both are stored once.
    fn open(backend: &B, described: DescribedPair) -> Result<Self> {
        let tuned = Model::open(backend, &described.tuned.folder, None)?;
        let untuned = Model::open(backend, &described.untuned.folder, Some(&tuned))?;
        Ok(Self { described, tuned, untuned })
    }

    /// The pair with `caches` caches as `limits` has them, all but the first for proposing.
    fn build(
        self,
        backend: &Arc<B>,
        limits: Limits,
        caches: usize,
        template: &Template,
        reading: &Reading,
    ) -> Result<WeightedPair<B>> {
        let DescribedPair { tuned, weight, tokens, .. } = self.described;
        let proposal_pages = (caches - 1) * limits.pages;
        let limits = Limits { pages: caches * limits.pages, ..limits };
        let eos = tuned.end();
        let pair = Pair::new(backend, self.tuned, self.untuned, limits, proposal_pages)?;
        let format = reading.format(tuned.tokenizer, template.clone());
        // The guide's own, where responses are given whole.
        let longest_token = format.tokenizer.longest_token();
        let pair = Arc::new(Mutex::new(pair));
        Ok(WeightedPair { pair, weight, format, tokens, eos, longest_token })
    }
}
