//! What a model is, as data: one description for all families, read from `config.json`.

use std::path::Path;

use super::families::Family;
use super::fields::{CONFIG, GENERATION, GENERATION_TABLE, SUGGESTIONS};
use super::gpt2;
use super::rotary::Rotary;
use crate::backend::Heads;
use crate::error::{Error, Result};
use crate::folder::{JsonFile, Notes};

/// More bytes than any `config.json` has.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Everything that the forward pass needs to know of a model besides its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family's name, as in `architectures`.
    pub architecture: &'static str,
    /// Entries of the embedding table and of the head.
    pub vocab: usize,
    /// Channels of the residual stream.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Channels inside the MLP.
    pub feed_forward: usize,
    /// Positions that the model knows.
    pub context: usize,
    /// Which norm stands before attention, MLP and head.
    pub norm: Norm,
    /// How a token knows its place.
    pub position: Position,
    /// What is between the MLP's two matrices.
    pub activation: Activation,
    /// `[layers]`: how each layer attends.
    pub attention: Vec<LayerAttention>,
    /// The head is the embedding table.
    pub tied_head: bool,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Tokens that end a text.
    pub ends: Ends,
}

/// A normalisation and its epsilon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Mean and variance, weight and bias (GPT-2).
    Layer(f32),
    /// Root mean square, weight only (Llama).
    Rms(f32),
}

/// How positions enter the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// A second embedding table, `[context, width]`.
    Learned,
    /// Rotary embedding.
    Rotary(Rotary),
}

/// How one layer attends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerAttention {
    /// Positions that a row sees at most, its own included.
    pub window: Option<usize>,
    /// Factor on queries times keys.
    pub scale: f32,
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form (GPT-2's `gelu_new`).
    Gelu,
    /// GELU by the error function.
    GeluErf,
    /// silu(gate) · up (Llama).
    SiluGate,
}

impl Activation {
    /// Matrices into the MLP.
    pub fn inputs(self) -> usize {
        match self {
            Self::Gelu | Self::GeluErf => 1,
            Self::SiluGate => 2,
        }
    }
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys, values.
    pub qkv: bool,
    /// Attention's output.
    pub output: bool,
    /// Both sides of the MLP.
    pub mlp: bool,
}

/// Tokens that end a text, by the file that names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// In `config.json`.
    pub config: Vec<u32>,
    /// In `generation_config.json`.
    pub generation: Vec<u32>,
}

/// A token that ends a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndToken {
    /// The token.
    pub id: u32,
    /// The files that name it.
    pub sources: Vec<&'static str>,
}

impl Ends {
    /// All tokens that end a text of a model whose tokenizer names `tokenizer` as its end. Authors name the end
    /// of a turn in one file and the end of a document in another, so all of them count. The first is the one
    /// that ends a text that is given: the tokenizer's, if it has one.
    pub fn all(&self, tokenizer: Option<u32>) -> Vec<EndToken> {
        let tokenizer: Vec<u32> = tokenizer.into_iter().collect();
        let sources = [
            ("tokenizer_config.json", &tokenizer),
            (GENERATION, &self.generation),
            (CONFIG, &self.config),
        ];
        let mut all: Vec<EndToken> = Vec::new();
        for (source, ids) in sources {
            for &id in ids {
                match all.iter_mut().find(|end| end.id == id) {
                    None => all.push(EndToken { id, sources: vec![source] }),
                    Some(end) if end.sources.contains(&source) => {}
                    Some(end) => end.sources.push(source),
                }
            }
        }
        all
    }
}

impl Config {
    /// Reads `config.json` and, where it exists, `generation_config.json` of a model's folder, and holds all
    /// of their fields to what trimtab knows.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Checkpoint`] for a file that cannot be read, [`Error::UnknownArchitecture`],
    /// and [`Error::Config`] for a field whose value is absurd or would need what trimtab does not do.
    pub fn open(folder: &Path) -> Result<(Self, Notes)> {
        let path = folder.join(CONFIG);
        let file = JsonFile::open(&path, MAX_FILE_BYTES)?.ok_or_else(|| {
            Error::io("read", &path)(std::io::Error::from(std::io::ErrorKind::NotFound))
        })?;
        let (mut config, mut notes) = Self::of(&file)?;
        if let Some(file) = JsonFile::open(&folder.join(GENERATION), MAX_FILE_BYTES)? {
            notes.warnings.extend(GENERATION_TABLE.check(&file)?);
            notes.remarks.extend(suggestions(&file));
            config.ends.generation = config.known_ends(&file, &mut notes)?;
        }
        Ok((config, notes))
    }

    /// Reads a `config.json` that is not in a file; `name` stands for its path in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        Self::of(&JsonFile::parse(name.into(), text.as_bytes())?).map(|(config, _)| config)
    }

    /// Reads a `config.json`.
    pub fn of(file: &JsonFile) -> Result<(Self, Notes)> {
        if file.get("quantization_config").is_some() {
            return Err(file.error(
                "quantization_config",
                "says that the weights are quantised; use the original f32, f16 or bf16 files",
            ));
        }
        let family = Family::of(file)?;
        let mut notes = Notes::default();
        notes.warnings.extend(family.fields.check(file)?);
        let mut config = (family.config)(file, &mut notes)?;
        config.ends.config = config.known_ends(file, &mut notes)?;
        Ok((config, notes))
    }

    /// The end tokens that a file names, all of which must exist.
    fn known_ends(&self, file: &JsonFile, notes: &mut Notes) -> Result<Vec<u32>> {
        const NAME: &str = "eos_token_id";
        let mut ends = file.tokens(NAME)?;
        let Some(&token) = ends.iter().find(|&&token| token as usize >= self.vocab) else {
            return Ok(ends);
        };
        let reason = format!("names token {token}, but vocab_size is {}", self.vocab);
        // transformers writes GPT-2's own end token where a model of another vocabulary names none.
        if self.architecture == gpt2::NAME && token == gpt2::DEFAULT_EOS {
            let error = file.error(NAME, reason);
            notes.warn(format!("{error}; trimtab takes the tokenizer's end token instead"));
            ends.retain(|&token| token != gpt2::DEFAULT_EOS);
            return Ok(ends);
        }
        Err(file.error(NAME, reason))
    }

    /// Numbers in the matrices of all layers: a row is multiplied by each of them once.
    pub fn layer_parameters(&self) -> usize {
        let Heads { query, kv, dim } = self.heads;
        let attention = self.width * (query + 2 * kv) * dim + query * dim * self.width;
        let mlp = self.width * self.feed_forward * (self.activation.inputs() + 1);
        self.layers * (attention + mlp)
    }

    /// Numbers in the head's matrix.
    pub fn head_parameters(&self) -> usize {
        self.vocab * self.width
    }

    /// Bytes that the weights take in bf16.
    pub fn weight_bytes(&self) -> usize {
        let tables = self.head_parameters() * if self.tied_head { 1 } else { 2 };
        let positions = match self.position {
            Position::Learned => self.context * self.width,
            Position::Rotary(_) => 0,
        };
        2 * (self.layer_parameters() + tables + positions)
    }

    /// Bytes of keys and values that one cached token takes.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.layers * self.heads.kv * self.heads.dim * 2
    }
}

/// How its authors draw tokens, which flags and requests decide here.
fn suggestions(file: &JsonFile) -> Option<String> {
    let asked = SUGGESTIONS.iter().filter_map(|&(name, neutral)| {
        let value = file.get(name)?;
        (value.as_f64() != Some(neutral)).then(|| format!("{name} {value}"))
    });
    let asked: Vec<_> = asked.collect();
    (!asked.is_empty()).then(|| {
        format!(
            "{GENERATION} suggests {}; trimtab draws tokens as flags and requests say",
            asked.join(", ")
        )
    })
}

/// An error for a name that a field must not have.
pub(super) fn unsupported(file: &JsonFile, field: &str, name: &str, supported: &str) -> Error {
    file.error(field, format!("is {name:?}, which is not supported (only {supported})"))
}

/// The head shape after the checks that all families share.
pub fn heads(
    file: &JsonFile,
    names: [&str; 2],
    query: usize,
    kv: usize,
    dim: usize,
) -> Result<Heads> {
    if !query.is_multiple_of(kv) {
        let reason = format!("is {kv}, which does not divide {} = {query}", names[0]);
        return Err(file.error(names[1], reason));
    }
    Ok(Heads { query, kv, dim })
}

/// Bounds on what a config may ask for; above them it is a mistake or an attack.
pub mod limits {
    /// Vocabulary entries.
    pub const VOCAB: usize = 1 << 22;
    /// Channels of the residual stream.
    pub const WIDTH: usize = 1 << 16;
    /// Layers.
    pub const LAYERS: usize = 1 << 10;
    /// Heads of one layer.
    pub const HEADS: usize = 1 << 10;
    /// Channels of a head.
    pub const HEAD_DIM: usize = 1 << 10;
    /// Channels inside the MLP.
    pub const FEED_FORWARD: usize = 1 << 19;
    /// Positions.
    pub const CONTEXT: usize = 1 << 24;
}
