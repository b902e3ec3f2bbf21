//! A checkpoint's tensors laid out for a backend.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::config::{Activation, Config, Norm, Position};
use super::families::Family;
use super::files::{ModelFiles, Places, damaged};
use super::tensors::Tensors;
use crate::backend::Backend;
use crate::error::Result;
use crate::tensor::{HostMatrix, bf16};

/// What a family calls its tensors. With `.weight` and `.bias` left out where both may exist.
pub struct Names {
    /// In front of every name but the head's; some files leave it out (`Places` in files.rs).
    pub prefix: &'static str,
    /// `[vocab, width]`
    pub embedding: &'static str,
    /// `[context, width]`, where positions are learned.
    pub positions: &'static str,
    /// Before a layer's number.
    pub layers: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// Queries, keys and values, together or one by one.
    pub qkv: &'static [&'static str],
    /// Attention's output.
    pub output: &'static str,
    /// The norm before the MLP.
    pub mlp_norm: &'static str,
    /// Into the MLP.
    pub up: &'static str,
    /// Into the MLP too, where `up` is gated.
    pub gate: &'static str,
    /// Out of the MLP.
    pub down: &'static str,
    /// The norm before the head.
    pub final_norm: &'static str,
    /// `[vocab, width]`, where the head is not tied.
    pub head: &'static str,
    /// Matrices are stored `[in, out]`.
    pub conv1d: bool,
    /// Ends of names that a layer may have and nobody needs.
    pub needless: &'static [&'static str],
}

/// A model's weights on a device.
pub struct Model<B: Backend> {
    /// What the model is.
    pub config: Config,
    /// Where the weights come from: a twin compares its own with them.
    tensors: Tensors,
    places: Places,
    pub(super) embedding: Arc<B::Matrix>,
    pub(super) positions: Option<Arc<B::Matrix>>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) final_norm: NormWeights<B>,
    pub(super) head: Arc<B::Matrix>,
    /// Matrices that are the twin's own, stored once.
    pub shared_matrices: usize,
}

pub(super) struct Layer<B: Backend> {
    pub attention_norm: NormWeights<B>,
    pub qkv: Linear<B>,
    pub output: Linear<B>,
    pub mlp_norm: NormWeights<B>,
    pub up: Linear<B>,
    /// For a gated MLP.
    pub gate: Option<Linear<B>>,
    pub down: Linear<B>,
}

pub(super) struct NormWeights<B: Backend> {
    /// `[width]`
    pub weight: B::Buffer<f32>,
    /// `[width]`, for a layer norm.
    pub bias: Option<B::Buffer<f32>>,
}

pub(super) struct Linear<B: Backend> {
    /// `[out, in]`
    pub weight: Arc<B::Matrix>,
    /// `[out]`
    pub bias: Option<B::Buffer<f32>>,
}

impl<B: Backend> Model<B> {
    /// Loads the model in `folder`. Matrices that are byte for byte those of `twin` are taken
    /// from it and stored once.
    pub fn open(backend: &B, folder: &Path, twin: Option<&Model<B>>) -> Result<Self> {
        Self::from_files(backend, ModelFiles::open(folder)?, twin)
    }

    /// [`Model::open`] of a folder that is open already.
    pub fn from_files(backend: &B, files: ModelFiles, twin: Option<&Model<B>>) -> Result<Self> {
        let ModelFiles { config, checkpoint, places, .. } = files;
        Self::load(backend, config, Tensors::Files(checkpoint), places, twin)
    }

    /// A model of this shape with random weights, for measuring speed: the same for the same
    /// seed.
    pub fn random(backend: &B, config: Config, seed: u64) -> Result<Self> {
        let places = Places::usual(Family::named(config.architecture).names);
        Self::load(backend, config, Tensors::Random { seed }, places, None)
    }

    /// Bytes of device memory that the weights of a model of this shape take: matrices as the backend lays
    /// them out, the rest in f32.
    pub fn bytes(backend: &B, config: &Config) -> usize {
        let Config { vocab, width, heads, feed_forward, biases, tied_head, .. } = *config;
        let ups = config.activation.inputs();
        let norm = match config.norm {
            Norm::Layer(_) => 2 * width,
            Norm::Rms(_) => width,
        };
        let matrix = |outputs, inputs| backend.matrix_bytes(outputs, inputs);
        let vector = |there, len| if there { len } else { 0 };
        let matrices = matrix(heads.qkv_width(), width)
            + matrix(width, heads.query_width())
            + ups * matrix(feed_forward, width)
            + matrix(width, feed_forward);
        let vectors = 2 * norm
            + vector(biases.qkv, heads.qkv_width())
            + vector(biases.output, width)
            + vector(biases.mlp, ups * feed_forward + width);
        let positions = match config.position {
            Position::Learned => matrix(config.context, width),
            Position::Rotary(_) => 0,
        };
        let tables = matrix(vocab, width) * if tied_head { 1 } else { 2 };
        let numbers = config.layers * vectors + norm;
        config.layers * matrices + tables + positions + numbers * size_of::<f32>()
    }

    fn load(
        backend: &B,
        config: Config,
        tensors: Tensors,
        places: Places,
        twin: Option<&Model<B>>,
    ) -> Result<Self> {
        backend.check_heads(config.heads)?;
        let names = Family::named(config.architecture).names;
        let twin = twin.filter(|twin| {
            twin.config.architecture == config.architecture && twin.places.prefix == places.prefix
        });
        let mut loader = Loader {
            backend,
            names,
            places: &places,
            config: &config,
            tensors: &tensors,
            twin,
            shared: 0,
            used: RefCell::default(),
        };

        let vocab = config.vocab;
        let theirs = twin
            .filter(|twin| twin.places.embedding == places.embedding)
            .map(|twin| twin.embedding.clone());
        let embedding = loader.table(places.embedding.clone(), vocab, theirs)?;
        let positions = match config.position {
            Position::Learned => {
                let theirs = twin.and_then(|twin| twin.positions.clone());
                Some(loader.table(places.full(names.positions), config.context, theirs)?)
            }
            Position::Rotary(_) => None,
        };
        let layers = (0..config.layers).map(|i| loader.layer(i)).collect::<Result<_>>()?;
        let final_norm = loader.norm(names.final_norm)?;
        let head = if config.tied_head {
            embedding.clone()
        } else {
            let theirs = twin.filter(|twin| !twin.config.tied_head).map(|twin| twin.head.clone());
            loader.table(places.head.clone(), vocab, theirs)?
        };
        loader.check_all_used()?;
        let shared_matrices = loader.shared;
        Ok(Self {
            config,
            tensors,
            places,
            embedding,
            positions,
            layers,
            final_norm,
            head,
            shared_matrices,
        })
    }
}

/// Reads tensors by their family's names.
struct Loader<'a, B: Backend> {
    backend: &'a B,
    names: &'static Names,
    places: &'a Places,
    config: &'a Config,
    tensors: &'a Tensors,
    twin: Option<&'a Model<B>>,
    shared: usize,
    /// All names asked for.
    used: RefCell<HashSet<String>>,
}

impl<B: Backend> Loader<'_, B> {
    /// An error if the layers have tensors that were not asked for: this would be another model.
    fn check_all_used(&self) -> Result<()> {
        let Tensors::Files(checkpoint) = self.tensors else {
            return Ok(());
        };
        let (layers, used) =
            (self.places.full(&format!("{}.", self.names.layers)), self.used.borrow());
        let unused = checkpoint.names().find(|name| {
            name.starts_with(&layers)
                && !used.contains(*name)
                && !self.names.needless.iter().any(|needless| name.ends_with(needless))
        });
        match unused {
            None => Ok(()),
            Some(name) => Err(damaged(
                checkpoint,
                format!(
                    "tensor {name:?} has no place in the model that config.json describes, with {} \
                     layers: is it another model's?",
                    self.config.layers
                ),
            )),
        }
    }

    fn layer(&mut self, index: usize) -> Result<Layer<B>> {
        let Config { width, heads, feed_forward, biases, .. } = *self.config;
        let names = self.names;
        let prefix = format!("{}.{index}.", names.layers);
        let at = |name: &str| format!("{prefix}{name}");
        let qkv_parts: &[usize] = match names.qkv.len() {
            1 => &[heads.qkv_width()],
            _ => &[heads.query_width(), heads.kv * heads.dim, heads.kv * heads.dim],
        };
        let qkv: Vec<_> =
            names.qkv.iter().zip(qkv_parts).map(|(name, &rows)| (at(name), rows)).collect();
        let twin = self.twin.and_then(|twin| twin.layers.get(index));
        let theirs = |pick: fn(&Layer<B>) -> Option<&Linear<B>>| Some(pick(twin?)?.weight.clone());
        Ok(Layer {
            attention_norm: self.norm(&at(names.attention_norm))?,
            qkv: self.linear(&qkv, width, biases.qkv, theirs(|l| Some(&l.qkv)))?,
            output: self.linear(
                &[(at(names.output), width)],
                heads.query_width(),
                biases.output,
                theirs(|l| Some(&l.output)),
            )?,
            mlp_norm: self.norm(&at(names.mlp_norm))?,
            up: self.linear(
                &[(at(names.up), feed_forward)],
                width,
                biases.mlp,
                theirs(|l| Some(&l.up)),
            )?,
            gate: match self.config.activation {
                Activation::Gelu | Activation::GeluErf => None,
                Activation::SiluGate => Some(self.linear(
                    &[(at(names.gate), feed_forward)],
                    width,
                    biases.mlp,
                    theirs(|l| l.gate.as_ref()),
                )?),
            },
            down: self.linear(
                &[(at(names.down), width)],
                feed_forward,
                biases.mlp,
                theirs(|l| Some(&l.down)),
            )?,
        })
    }

    fn norm(&self, name: &str) -> Result<NormWeights<B>> {
        let width = self.config.width;
        let weight = self.vector(&[(format!("{name}.weight"), width)])?;
        let bias = match self.config.norm {
            Norm::Layer(_) => Some(self.vector(&[(format!("{name}.bias"), width)])?),
            Norm::Rms(_) => None,
        };
        Ok(NormWeights { weight, bias })
    }

    /// Matrices with equal inputs, stacked into one.
    fn linear(
        &mut self,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
        theirs: Option<Arc<B::Matrix>>,
    ) -> Result<Linear<B>> {
        let with = |suffix: &str| -> Vec<(String, usize)> {
            parts
                .iter()
                .map(|(name, rows)| (self.places.full(&format!("{name}.{suffix}")), *rows))
                .collect()
        };
        let (weights, biases) = (with("weight"), with("bias"));
        let bias = if bias { Some(self.stacked_vector(&biases)?) } else { None };
        Ok(Linear { weight: self.matrix(&weights, inputs, self.names.conv1d, theirs)?, bias })
    }

    fn table(
        &mut self,
        name: String,
        rows: usize,
        theirs: Option<Arc<B::Matrix>>,
    ) -> Result<Arc<B::Matrix>> {
        self.matrix(&[(name, rows)], self.config.width, false, theirs)
    }

    /// The parts, `(full name, rows)`, stacked; `[in, out]` in the file if `transposed`. `theirs`
    /// is the twin's matrix of the same name.
    fn matrix(
        &mut self,
        parts: &[(String, usize)],
        cols: usize,
        transposed: bool,
        theirs: Option<Arc<B::Matrix>>,
    ) -> Result<Arc<B::Matrix>> {
        let shape = |rows| if transposed { [cols, rows] } else { [rows, cols] };
        self.used.get_mut().extend(parts.iter().map(|(name, _)| name.clone()));
        if let (Some(twin), Some(matrix)) = (self.twin, theirs) {
            let shared = parts
                .iter()
                .map(|(name, rows)| self.tensors.shares(&twin.tensors, name, &shape(*rows)))
                .collect::<Result<Vec<bool>>>()?;
            if shared.into_iter().all(|shared| shared) {
                self.shared += 1;
                return Ok(matrix);
            }
        }
        let mut data: Vec<bf16> = Vec::new();
        for (name, rows) in parts {
            let part = self.tensors.matrix(name, &shape(*rows))?;
            let part = if transposed { transpose(&part, cols, *rows) } else { part };
            // The largest matrices have one part, of which there must not be two copies.
            if data.is_empty() {
                data = part;
            } else {
                data.extend(part);
            }
        }
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        Ok(Arc::new(self.backend.matrix(HostMatrix::new(rows, cols, data))?))
    }

    fn vector(&self, parts: &[(String, usize)]) -> Result<B::Buffer<f32>> {
        let full: Vec<_> = parts.iter().map(|(name, len)| (self.places.full(name), *len)).collect();
        self.stacked_vector(&full)
    }

    /// The parts, `(full name, length)`, one after the other.
    fn stacked_vector(&self, parts: &[(String, usize)]) -> Result<B::Buffer<f32>> {
        self.used.borrow_mut().extend(parts.iter().map(|(name, _)| name.clone()));
        let mut data = Vec::new();
        for (name, len) in parts {
            data.extend(self.tensors.vector(name, *len)?);
        }
        let mut buffer = self.backend.alloc(data.len())?;
        self.backend.upload(&data, &mut buffer)?;
        Ok(buffer)
    }
}

/// `[rows, cols]` as `[cols, rows]`.
fn transpose(data: &[bf16], rows: usize, cols: usize) -> Vec<bf16> {
    /// Columns that are read side by side, as many as share a cache line.
    const TILE: usize = 32;
    let mut out = vec![bf16::ZERO; data.len()];
    for first in (0..cols).step_by(TILE) {
        for row in 0..rows {
            for col in first..cols.min(first + TILE) {
                out[col * rows + row] = data[row * cols + col];
            }
        }
    }
    out
}
