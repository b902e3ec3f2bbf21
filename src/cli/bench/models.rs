//! The models that are measured: from folders, or made up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::shapes::Shape;
use crate::backend::Backend;
use crate::cli::base::Base;
use crate::cli::models::{self, BosFlag, Bytes, GuideArgs, GuideTokensFlag, Plan};
use crate::engine::{Config, Engine, Limits, Longest, Model, ModelFiles, Pair};
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
    /// The pair's shape [default: the base model's]; its vocabulary must be as large
    #[arg(long, value_enum, requires = "shape")]
    guide_shape: Option<Shape>,
}

/// What a model needs that runs by itself.
pub const ENGINE: &str = "weights, scratch memory, keys and values";

/// A model that has been described but not loaded.
pub struct Source {
    /// The shape's name, or the folder.
    pub name: String,
    pub config: Config,
    folder: Option<PathBuf>,
}

impl Source {
    fn folder(folder: &Path) -> Result<Self> {
        let (name, config) = (folder.display().to_string(), ModelFiles::open(folder)?.config);
        Ok(Self { name, config, folder: Some(folder.to_owned()) })
    }

    fn shape(shape: Shape) -> Result<Self> {
        Ok(Self { name: shape.name().to_owned(), config: shape.config()?, folder: None })
    }

    /// Whether another model reads its tokens as they are; shapes' random models do.
    fn has_the_tokens_of(&self, other: &Self) -> Result<bool> {
        let (Some(own), Some(others)) = (&self.folder, &other.folder) else { return Ok(true) };
        Ok(Tokenizer::open(own)?.same_vocabulary(&Tokenizer::open(others)?).is_ok())
    }

    /// Pages of a cache for `texts` texts of `len` tokens; an error if there can be none.
    pub fn pages(&self, texts: usize, len: usize, kv_memory: Option<Bytes>) -> Result<usize> {
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
        Ok(pages)
    }

    /// The model with room for `texts` texts of `len` tokens, of `logit_rows` of which the next
    /// token is drawn together.
    pub fn engine<B: Backend>(
        &self,
        backend: &Arc<B>,
        texts: usize,
        len: usize,
        logit_rows: usize,
        kv_memory: Option<Bytes>,
    ) -> Result<Engine<B>> {
        let limits = limits(self.pages(texts, len, kv_memory)?, logit_rows);
        let model = match &self.folder {
            Some(folder) => Model::open(&**backend, folder, None)?,
            None => Model::random(&**backend, self.config.clone(), 1)?,
        };
        Engine::new(backend.clone(), model, limits)
    }
}

/// A base model and a pair, ready to search.
pub struct Trio<B: Backend> {
    /// What they are, for people.
    pub name: String,
    /// The base model.
    pub base: Config,
    /// Tuned and untuned.
    pub guide: [Config; 2],
    /// The base model, whose responses end only at their limit.
    pub proposer: LocalProposer<B>,
    /// The pair.
    pub scorer: PairGuide<B>,
    /// The base model's.
    pub tokenizer: Arc<Tokenizer>,
}

impl ModelArgs {
    /// Each model that was given; those of a shape once. An error if shapes' vocabularies differ.
    pub fn sources(&self) -> Result<Vec<Source>> {
        if let (Some(base), Some(guide)) = (self.shape, self.guide_shape) {
            same_vocabulary(base, guide)?;
        }
        let folders = [&self.base, &self.tuned, &self.untuned].into_iter().flatten();
        let shapes = [self.shape, self.guide_shape].into_iter().flatten();
        let sources = folders.map(|folder| Source::folder(folder)).chain(shapes.map(Source::shape));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        match sources.is_empty() {
            true => Err(Error::flag("--base", "or --shape is needed")),
            false => Ok(sources),
        }
    }

    /// Refuses what no [`Source::engine`] could have.
    pub fn check_engines(&self, texts: usize, len: usize, kv_memory: Option<Bytes>) -> Result<()> {
        let mut sources = self.sources()?.into_iter();
        sources.try_for_each(|source| source.pages(texts, len, kv_memory).map(drop))
    }

    /// Bytes of the largest [`Source::engine`]: each is run by itself.
    pub fn engine_bytes<B: Backend>(
        &self,
        backend: &B,
        texts: usize,
        len: usize,
        logit_rows: usize,
    ) -> Result<usize> {
        let bytes = |source: Source| {
            let limits = limits(source.pages(texts, len, None)?, logit_rows);
            let weights = Model::bytes(backend, &source.config);
            Ok(weights + Engine::bytes(backend, &source.config, limits))
        };
        let bytes: Vec<usize> = self.sources()?.into_iter().map(bytes).collect::<Result<_>>()?;
        Ok(bytes.into_iter().max().unwrap_or(0))
    }

    /// Bytes of the largest model's weights: each is run by itself.
    pub fn largest_bytes(&self) -> Result<usize> {
        Ok(self.weight_bytes()?.into_iter().max().unwrap_or(0))
    }

    /// Bytes of the weights of base, tuned and untuned together.
    pub fn trio_bytes(&self) -> Result<usize> {
        let sources = self.weight_bytes()?;
        Ok(match (self.shape, &*sources) {
            // A shape is the base model's, the last one the pair's.
            (Some(_), [base, .., guide]) => base + 2 * guide,
            (Some(_), [all]) => 3 * all,
            _ => sources.iter().sum(),
        })
    }

    /// Bytes that these take at least: an untuned model in a folder may have all of its matrices from its
    /// twin.
    pub fn least_trio_bytes(&self) -> Result<usize> {
        if self.shape.is_some() { self.trio_bytes() } else { self.largest_bytes() }
    }

    /// As [`sources`](Self::sources).
    fn weight_bytes(&self) -> Result<Vec<usize>> {
        Ok(self.sources()?.iter().map(|source| source.config.weight_bytes()).collect())
    }

    /// Refuses searches after prompts of `prompt_len` tokens that base, tuned and untuned could never
    /// run, whatever the device.
    pub fn check_trio(
        &self,
        prompt_len: usize,
        life: &Lifetime,
        searches: usize,
        kv_memory: Option<Bytes>,
    ) -> Result<()> {
        let sources = self.sources()?;
        let needed = searches.saturating_mul(life.pages(prompt_len));
        // A shape's cache is as large as is needed, a folder's any that holds a page.
        let (base, tuned, untuned, pages) = match (self.shape, &*sources) {
            (Some(_), [all]) => (all, all, all, needed),
            (Some(_), [base, pair]) => (base, pair, pair, needed),
            (None, [base, tuned, untuned]) => (base, tuned, untuned, 1),
            _ => return Err(needs_trio()),
        };
        // Of a pair with a tokenizer of its own nobody knows yet how many tokens it reads.
        let same_tokens = base.has_the_tokens_of(tuned)?;
        let pair = [("guide", tuned), ("guide", untuned)].into_iter().filter(|_| same_tokens);
        for (model, source) in [("base", base)].into_iter().chain(pair) {
            let longest = Longest { context: source.config.context, cache: usize::MAX };
            longest.check(model, prompt_len, life.response)?;
        }
        let token = |source: &Source| source.config.kv_bytes_per_token();
        let page = (token(base) + token(tuned) + token(untuned)) * PAGE_LEN;
        let bytes = pages.saturating_mul(page);
        if kv_memory.is_some_and(|memory| memory.0 < bytes) {
            let reason = format!("must be at least {bytes} for this");
            return Err(Error::flag("--kv-memory", reason));
        }
        Ok(())
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
            (Some(shape), ..) => {
                self.check_trio(prompt_len, &life, searches, kv_memory)?;
                let guide = self.guide_shape.unwrap_or(shape);
                let pages = searches.saturating_mul(life.pages(prompt_len));
                Trio::random(backend, shape, guide, pages)
            }
            (None, Some(base), Some(tuned), Some(untuned)) => {
                let guide = GuideArgs {
                    tuned: Some(tuned.clone()),
                    untuned: Some(untuned.clone()),
                    guides: Vec::new(),
                    guide_template: None,
                    chat: false,
                    system: None,
                    date: None,
                    bos: BosFlag::Auto,
                };
                let plan = Plan {
                    base: Base::Folder(base.clone()),
                    base_template: Template::default(),
                    guide_tokens: GuideTokensFlag::Auto,
                    compat: false,
                    guidance: None,
                    least: life,
                    life,
                    in_flight: searches,
                };
                let ready = models::load(backend, &plan, &guide, kv_memory)?;
                let BaseProposer::Local(proposer) = ready.proposer else {
                    unreachable!("a folder's model runs here");
                };
                Ok(Trio {
                    name: [base, tuned, untuned].map(|f| f.display().to_string()).join(", "),
                    base: ModelFiles::open(base)?.config,
                    guide: [ModelFiles::open(tuned)?.config, ModelFiles::open(untuned)?.config],
                    proposer: proposer.ignoring_eos()?,
                    scorer: ready.guide,
                    tokenizer: Arc::new(Tokenizer::open(base)?),
                })
            }
            _ => Err(needs_trio()),
        }
    }
}

/// A single model's.
fn limits(pages: usize, logit_rows: usize) -> Limits {
    Limits { pages, rows: models::ROWS.max(logit_rows), logit_rows }
}

fn needs_trio() -> Error {
    Error::flag("--base", "with --tuned and --untuned, or --shape, is needed")
}

fn same_vocabulary(base: Shape, guide: Shape) -> Result<()> {
    let (base_vocab, guide_vocab) = (base.config()?.vocab, guide.config()?.vocab);
    if base_vocab == guide_vocab {
        return Ok(());
    }
    let reason = format!(
        "must have the base model's vocabulary: {} has {guide_vocab}, and {} has {base_vocab} entries",
        guide.name(),
        base.name(),
    );
    Err(Error::flag("--guide-shape", reason))
}

impl<B: Backend> Trio<B> {
    /// Three models of these shapes, each with random weights of its own, that cache `pages` pages.
    /// An error if the device has no room.
    pub fn random(backend: &Arc<B>, base: Shape, guide: Shape, pages: usize) -> Result<Self> {
        let (base_config, guide_config) = (base.config()?, guide.config()?);
        let limits = Limits { pages, rows: models::ROWS, logit_rows: models::LOGIT_ROWS };
        let model = |config: &Config, seed| Model::random(&**backend, config.clone(), seed);
        let tokenizer = Arc::new(Tokenizer::numbered(base_config.vocab)?);
        let format = PromptFormat { bos: Bos::Never, ..PromptFormat::new(tokenizer.clone()) };
        let engine = Engine::new(backend.clone(), model(&base_config, 1)?, limits)?;
        let (tuned, untuned) = (model(&guide_config, 2)?, model(&guide_config, 3)?);
        let pair = WeightedPair {
            pair: Arc::new(Mutex::new(Pair::new(backend, tuned, untuned, limits, 0)?)),
            weight: 1.0,
            format: format.clone(),
            tokens: GuideTokens::Ids,
            eos: None,
            longest_token: tokenizer.longest_token(),
        };
        Ok(Self {
            name: format!("{} with 2 x {}", base.name(), guide.name()),
            base: base_config,
            guide: [guide_config.clone(), guide_config],
            proposer: LocalProposer::new(engine, format, Vec::new(), Vec::new())?,
            scorer: PairGuide::new(vec![pair], None),
            tokenizer,
        })
    }
}

/// Token `place` of text `text`, any of `vocab`.
pub fn token(text: usize, place: usize, vocab: usize) -> u32 {
    ((text * 7919 + place * 104_729 + 17) % vocab) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: memory is measured with as many bytes as the models at hand have: a shape's three times
    /// for a search, or once, and the pair's own shape twice.
    #[test]
    fn weights_are_counted_as_they_are_read() {
        let args = |shape, guide_shape| ModelArgs {
            base: None,
            tuned: None,
            untuned: None,
            shape: Some(shape),
            guide_shape,
        };
        let bytes = |shape: Shape| shape.config().expect("a published shape").weight_bytes();
        let (large, small) = (bytes(Shape::Gpt2Xl), bytes(Shape::Gpt2));
        let mixed = args(Shape::Gpt2Xl, Some(Shape::Gpt2));
        assert_eq!(mixed.trio_bytes().expect("shapes"), large + 2 * small);
        assert_eq!(mixed.largest_bytes().expect("shapes"), large);
        let alike = args(Shape::Gpt2, None);
        assert_eq!(alike.trio_bytes().expect("a shape"), 3 * small);
        assert_eq!(alike.largest_bytes().expect("a shape"), small);
    }
}
