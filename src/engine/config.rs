//! What a model is, as data: one description for all families, read from `config.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{gpt2, llama};
use crate::backend::Heads;
use crate::error::{Error, Result};

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
    /// Positions that attention sees at most, the row's own included.
    pub window: Option<usize>,
    /// The head is the embedding table.
    pub tied_head: bool,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Tokens that end a text; from `generation_config.json` where it has them.
    pub eos: Vec<u32>,
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
    /// Rotary embedding: the angle per position of each of the head_dim / 2 channel pairs.
    Rotary(Vec<f32>),
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form (GPT-2's `gelu_new`).
    Gelu,
    /// silu(gate) · up (Llama).
    SiluGate,
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

/// Names that `architectures` may hold.
pub const ARCHITECTURES: [&str; 3] = [gpt2::NAME, llama::LLAMA, llama::MISTRAL];

impl Config {
    /// Reads `config.json` and, where it exists, `generation_config.json` of a model's folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let fields = Fields::open(folder.join("config.json"))?;
        let mut config = Self::of(&fields)?;
        let generation = folder.join("generation_config.json");
        if generation.is_file() {
            let fields = Fields::open(generation)?;
            let eos = fields.tokens("eos_token_id")?;
            if !eos.is_empty() {
                config.eos = eos;
                return config.checked(&fields);
            }
        }
        config.checked(&fields)
    }

    /// Reads a `config.json` that is not in a file; `name` stands for its path in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let fields = Fields::parse(name.into(), text)?;
        Self::of(&fields)?.checked(&fields)
    }

    fn of(fields: &Fields) -> Result<Self> {
        if fields.get("quantization_config").is_some() {
            return Err(fields.error(
                "quantization_config",
                "says that the weights are quantised; use the original f32, f16 or bf16 files",
            ));
        }
        let mut config = match fields.architecture()?.as_str() {
            gpt2::NAME => gpt2::config(fields)?,
            llama::LLAMA => llama::config(fields, llama::LLAMA)?,
            llama::MISTRAL => llama::config(fields, llama::MISTRAL)?,
            name => {
                return Err(Error::UnknownArchitecture {
                    path: fields.path.clone(),
                    name: name.to_owned(),
                    supported: ARCHITECTURES.join(", "),
                });
            }
        };
        config.eos = fields.tokens("eos_token_id")?;
        Ok(config)
    }

    /// Refuses end tokens that there are not; `fields`: where they stand.
    fn checked(self, fields: &Fields) -> Result<Self> {
        match self.eos.iter().find(|&&token| token as usize >= self.vocab) {
            None => Ok(self),
            Some(token) => {
                let reason = format!("names token {token}, but vocab_size is {}", self.vocab);
                Err(fields.error("eos_token_id", reason))
            }
        }
    }

    /// Numbers in the matrices of all layers: a row is multiplied by each of them once.
    pub fn layer_parameters(&self) -> usize {
        let Heads { query, kv, dim } = self.heads;
        let up = match self.activation {
            Activation::Gelu => 1,
            Activation::SiluGate => 2,
        };
        let attention = self.width * (query + 2 * kv) * dim + query * dim * self.width;
        let mlp = self.width * self.feed_forward * (up + 1);
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

/// A JSON object from a file, with errors that name file and field.
pub struct Fields {
    path: PathBuf,
    object: serde_json::Map<String, Value>,
}

impl Fields {
    fn open(path: PathBuf) -> Result<Self> {
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        Self::parse(path, &text)
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Self { path, object }),
            Ok(_) => Err(Error::Checkpoint { path, reason: "is not a JSON object".into() }),
            Err(e) => Err(Error::Checkpoint { path, reason: format!("is not JSON: {e}") }),
        }
    }

    /// The fields inside field `name`, if it is there and not null.
    pub fn nested(&self, name: &str) -> Result<Option<Fields>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Fields { path: self.path.clone(), object: object.clone() }))
            }
            Some(_) => Err(self.error(name, "must be an object")),
        }
    }

    /// A field's value, if it is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the file says something of a field, be it null.
    pub fn names(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// An error that names this file and field `name`.
    pub fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), field: name.into(), reason: reason.into() }
    }

    /// A whole number from 1 to `max`.
    pub fn size(&self, name: &str, max: usize) -> Result<usize> {
        self.size_or(name, max, None)
    }

    /// A whole number from 1 to `max`, or `default` where the field is missing.
    pub fn size_or(&self, name: &str, max: usize, default: Option<usize>) -> Result<usize> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(name, "is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| (1..=max).contains(n))
                .ok_or_else(|| {
                    self.error(name, format!("is {value} but must be a number from 1 to {max}"))
                }),
        }
    }

    /// A finite positive number, or `default` where the field is missing.
    pub fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(name, "is missing")),
            (Some(value), _) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| self.error(name, format!("is {value} but must be positive"))),
        }
    }

    /// True or false, or `default` where the field is missing.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(self.error(name, format!("is {value} but must be true or false"))),
        }
    }

    /// A string, if the field is there.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.error(name, format!("is {value} but must be a string"))),
        }
    }

    /// Refuses any value but `only`, where the field is there.
    pub fn require(&self, name: &str, only: &Value) -> Result<()> {
        // 1 and 1.0 are the same.
        let same =
            |value: &Value| value == only || value.is_number() && value.as_f64() == only.as_f64();
        match self.get(name) {
            Some(value) if !same(value) => {
                Err(self.error(name, format!("is {value}, which is not supported (only {only})")))
            }
            _ => Ok(()),
        }
    }

    /// One token id or a list of them.
    fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let token = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                self.error(name, format!("is {value} but must be a token id or a list of them"))
            })
        };
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(token).collect(),
            Some(value) => Ok(vec![token(value)?]),
        }
    }

    /// The name in `architectures`, or the family that `model_type` means.
    fn architecture(&self) -> Result<String> {
        match self.get("architectures") {
            Some(Value::Array(list)) if !list.is_empty() => match &list[0] {
                Value::String(name) => Ok(name.clone()),
                _ => Err(self.error("architectures", "must be a list of names")),
            },
            _ => match self.text("model_type")? {
                Some("gpt2") => Ok(gpt2::NAME.into()),
                Some("llama") => Ok(llama::LLAMA.into()),
                Some("mistral") => Ok(llama::MISTRAL.into()),
                Some(other) => Ok(other.into()),
                None => Err(self.error("architectures", "is missing")),
            },
        }
    }
}

/// The head shape after the checks that all families share.
pub fn heads(
    fields: &Fields,
    names: [&str; 2],
    query: usize,
    kv: usize,
    dim: usize,
) -> Result<Heads> {
    if !query.is_multiple_of(kv) {
        let reason = format!("is {kv}, which does not divide {} = {query}", names[0]);
        return Err(fields.error(names[1], reason));
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
