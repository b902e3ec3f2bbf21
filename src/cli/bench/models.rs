//! The models that are measured: from folders, or made up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::shapes::Shape;
use crate::backend::Backend;
use crate::cli::base::Base;
use crate::cli::models::{self, BosFlag, Bytes, GuideArgs, GuideTokensFlag, Plan};
use crate::engine::{Config, Engine, Limits, Model, Pair};
use crate::error::{Error, Result};
use crate::guide::{GuideTokens, PairGuide, WeightedPair};
use crate::kv_cache::{Lifetime, PAGE_LEN};
use crate::proposer::{BaseProposer, LocalProposer};
use crate::text::{Bos, PromptFormat, Template, Tokenizer};

#[derive(clap::Args, Clone, Debug)]
pub struct ModelArgs {
    /// Folder of the base model
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    base: Option<PathBuf>,
    /// Folder of the tuned small model
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    tuned: Option<PathBuf>,
    /// Folder of the untuned small model
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    untuned: Option<PathBuf>,
    /// Models of a published shape with random weights, instead of folders
    #[arg(long, value_enum)]
    shape: Option<Shape>,
}

/// A model that has been described but not loaded.
pub struct Source {
    /// The shape's name, or the folder.
    pub name: String,
    pub config: Config,
    folder: Option<PathBuf>,
}

impl Source {
    fn folder(folder: &Path) -> Result<Self> {
        let (name, config) = (folder.display().to_string(), Config::open(folder)?);
        Ok(Self { name, config, folder: Some(folder.to_owned()) })
    }

    fn shape(shape: Shape) -> Result<Self> {
        Ok(Self { name: shape.name().to_owned(), config: shape.config()?, folder: None })
    }

    /// The model with room for `texts` texts of `len` tokens.
    pub fn engine<B: Backend>(
        &self,
        backend: &Arc<B>,
        texts: usize,
        len: usize,
        kv_memory: Option<Bytes>,
    ) -> Result<Engine<B>> {
        let context = self.config.context;
        if len > context {
            let reason =
                format!("(with what follows: {len}) is more than the context of {context}");
            return Err(Error::flag("--prompt-len", reason));
        }
        let pages = texts * len.div_ceil(PAGE_LEN);
        let bytes = pages * PAGE_LEN * self.config.kv_bytes_per_token();
        if kv_memory.is_some_and(|memory| memory.0 < bytes) {
            let reason = format!("must be at least {bytes} for {texts} texts of {len} tokens");
            return Err(Error::flag("--kv-memory", reason));
        }
        let logit_rows = texts.min(models::LOGIT_ROWS);
        let limits = Limits { pages, rows: models::ROWS.max(logit_rows), logit_rows };
        let model = match &self.folder {
            Some(folder) => Model::open(&**backend, folder, None)?,
            None => Model::random(&**backend, self.config.clone(), 1)?,
        };
        Engine::new(backend.clone(), model, limits)
    }
}

/// What `bench search` runs.
pub struct Trio<B: Backend> {
    /// What it is, for people.
    pub name: String,
    pub base: Config,
    pub guide: [Config; 2],
    pub proposer: LocalProposer<B>,
    pub scorer: PairGuide<B>,
    /// The base model's.
    pub tokenizer: Arc<Tokenizer>,
}

impl ModelArgs {
    /// Each model that was given.
    pub fn sources(&self) -> Result<Vec<Source>> {
        let folders = [&self.base, &self.tuned, &self.untuned].into_iter().flatten();
        let mut sources = folders.map(|f| Source::folder(f)).collect::<Result<Vec<_>>>()?;
        if let Some(shape) = self.shape {
            sources.push(Source::shape(shape)?);
        }
        match sources.is_empty() {
            true => Err(Error::flag("--base", "or --shape is needed")),
            false => Ok(sources),
        }
    }

    /// Base, tuned and untuned, for searches of this size that run together. No response ends
    /// before its limit.
    pub fn trio<B: Backend>(
        &self,
        backend: &Arc<B>,
        prompt_len: usize,
        life: Lifetime,
        searches: usize,
        kv_memory: Option<Bytes>,
    ) -> Result<Trio<B>> {
        match (self.shape, &self.base, &self.tuned, &self.untuned) {
            (Some(shape), ..) => made_up(backend, shape, prompt_len, life, searches, kv_memory),
            (None, Some(base), Some(tuned), Some(untuned)) => {
                let guide = GuideArgs {
                    tuned: Some(tuned.clone()),
                    untuned: Some(untuned.clone()),
                    guides: Vec::new(),
                    guide_template: None,
                    chat: false,
                    bos: BosFlag::Auto,
                };
                let plan = Plan {
                    base: Base::Folder(base.clone()),
                    base_template: Template::default(),
                    guide_tokens: GuideTokensFlag::Auto,
                    compat: false,
                    guidance: None,
                    life,
                    in_flight: searches,
                };
                let ready = models::load(backend, &plan, &guide, kv_memory)?;
                let BaseProposer::Local(proposer) = ready.proposer else {
                    unreachable!("a folder's model runs here");
                };
                Ok(Trio {
                    name: [base, tuned, untuned].map(|f| f.display().to_string()).join(", "),
                    base: Config::open(base)?,
                    guide: [Config::open(tuned)?, Config::open(untuned)?],
                    proposer: proposer.ignoring_eos()?,
                    scorer: ready.guide,
                    tokenizer: Arc::new(Tokenizer::open(base)?),
                })
            }
            _ => Err(Error::flag("--base", "with --tuned and --untuned, or --shape, is needed")),
        }
    }
}

/// Three models of one shape, each with weights of its own.
fn made_up<B: Backend>(
    backend: &Arc<B>,
    shape: Shape,
    prompt_len: usize,
    life: Lifetime,
    searches: usize,
    kv_memory: Option<Bytes>,
) -> Result<Trio<B>> {
    let config = shape.config()?;
    let pages = searches * life.pages(prompt_len);
    let bytes = 3 * pages * PAGE_LEN * config.kv_bytes_per_token();
    if kv_memory.is_some_and(|memory| memory.0 < bytes) {
        return Err(Error::flag("--kv-memory", format!("must be at least {bytes} for this")));
    }
    let limits = Limits { pages, rows: models::ROWS, logit_rows: models::LOGIT_ROWS };
    let model = |seed| Model::random(&**backend, config.clone(), seed);
    let tokenizer = Arc::new(Tokenizer::numbered(config.vocab)?);
    let format = PromptFormat {
        tokenizer: tokenizer.clone(),
        template: Template::default(),
        chat: false,
        bos: Bos::Never,
    };
    let engine = Engine::new(backend.clone(), model(1)?, limits)?;
    let pair = Pair::new(backend, model(2)?, model(3)?, limits, 0)?;
    let pair = WeightedPair {
        pair: Arc::new(Mutex::new(pair)),
        weight: 1.0,
        format: format.clone(),
        tokens: GuideTokens::Ids,
        eos: None,
        longest_token: tokenizer.longest_token(),
    };
    Ok(Trio {
        name: format!("3 x {}", shape.name()),
        base: config.clone(),
        guide: [config.clone(), config],
        proposer: LocalProposer::new(engine, format, Vec::new(), Vec::new())?,
        scorer: PairGuide::new(vec![pair], None),
        tokenizer,
    })
}

/// Token `place` of text `text`, any of `vocab`.
pub fn token(text: usize, place: usize, vocab: usize) -> u32 {
    ((text * 7919 + place * 104_729 + 17) % vocab) as u32
}
