//! A folder's tensors, in one file or in shards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use super::header::{MAX_HEADER_BYTES, UniqueMap};
use super::shard::Shard;
use super::view::TensorView;
use crate::error::{Error, Result};
use crate::folder::{exists, read_file};
use crate::hash::{Fnv, Many};

/// The one file of a small checkpoint.
const SINGLE: &str = "model.safetensors";
/// Where a sharded one says which file holds which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// What older checkpoints have instead; Python objects, which are not read.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The tensors of one model's folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names. When both are there, the single file counts, as it does
/// for transformers.
///
/// Files stay open while this lives. One that is cut meanwhile is an error; one that is written to
/// may give numbers of both versions.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor is; its range was checked against the file.
#[derive(Debug)]
struct Place {
    shard: usize,
    info: TensorInfo,
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

impl Checkpoint {
    /// Opens a folder's files and checks all that their headers say.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::Checkpoint`] when there are no weights or
    /// when anything in them is not as the format asks.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        // The folder itself first: its absence deserves its own message.
        let is_folder = fs::metadata(folder).map_err(Error::io("open", folder))?.is_dir();
        if !is_folder {
            return Err(damaged(folder, "is not a folder; give the folder that holds the model"));
        }
        let mut checkpoint =
            Checkpoint { folder: folder.into(), shards: Vec::new(), tensors: BTreeMap::new() };
        if exists(&folder.join(SINGLE))? {
            checkpoint.add(folder.join(SINGLE))?;
        } else if exists(&folder.join(INDEX))? {
            checkpoint.add_shards(&folder.join(INDEX))?;
        } else {
            return Err(damaged(folder, nothing_found(folder)?));
        }
        if checkpoint.tensors.is_empty() {
            let file = checkpoint.shards.first().map_or(folder.join(INDEX), |s| s.path.clone());
            return Err(damaged(&file, "holds no tensors"));
        }
        Ok(checkpoint)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is missing, has another shape, or a dtype that is not
    /// floating-point of 16, 32 or 64 bits.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let Some(place) = self.tensors.get(name) else {
            let searched = match &self.shards[..] {
                [only] => only.path.clone(),
                _ => self.folder.join(INDEX),
            };
            return Err(damaged(
                &searched,
                format!("tensor {name:?} (shape {shape:?}) is missing, the model needs it"),
            ));
        };
        let (shard, info) = (&self.shards[place.shard], &place.info);
        if info.shape != shape {
            return Err(damaged(
                &shard.path,
                format!(
                    "tensor {name:?} has shape {:?} but config.json asks for {shape:?}",
                    info.shape
                ),
            ));
        }
        TensorView::new(info, shard).ok_or_else(|| {
            damaged(
                &shard.path,
                format!(
                    "tensor {name:?} has dtype {}, which is not supported; F64, F32, F16 and BF16 are",
                    info.dtype
                ),
            )
        })
    }

    /// Numbers in all tensors together, whether or not a model uses them.
    pub fn parameters(&self) -> u64 {
        self.infos().map(|info| info.shape.iter().map(|&dim| dim as u64).product::<u64>()).sum()
    }

    /// Bytes of all tensors together, as they are on disk.
    pub fn bytes(&self) -> u64 {
        self.infos().map(|info| (info.data_offsets.1 - info.data_offsets.0) as u64).sum()
    }

    /// The dtypes in the files, by name as the format writes them, each with its number of tensors.
    pub fn dtypes(&self) -> Vec<(String, u64)> {
        let mut count = BTreeMap::new();
        for info in self.infos() {
            *count.entry(info.dtype.to_string()).or_insert(0) += 1;
        }
        count.into_iter().collect()
    }

    /// A number that differs, but for chance, between checkpoints that are not the same: of all names, types,
    /// shapes and numbers.
    ///
    /// # Errors
    /// As [`TensorView::to_f32`].
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = Fnv::default();
        for (name, Place { shard, info }) in &self.tensors {
            hash.add(format!("{name} {} {:?}", info.dtype, info.shape).as_bytes());
            let mut bytes = Many::default();
            self.shards[*shard].each_part(info, |part| bytes.add(part))?;
            hash.add_many(bytes);
        }
        Ok(hash.finish())
    }

    /// The model's folder, as it was given.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values().map(|place| &place.info)
    }

    /// Opens one file and takes in its tensors.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let (opened, tensors) = Shard::open(path.clone())?;
        let shard = self.shards.len();
        for (name, info) in tensors {
            if let Some(other) = self.tensors.get(&name) {
                let other = self.shards[other.shard].path.display();
                return Err(damaged(&path, format!("tensor {name:?} is also in {other}")));
            }
            self.tensors.insert(name, Place { shard, info });
        }
        self.shards.push(opened);
        Ok(())
    }

    /// Opens every shard that the index names, and holds the index to what they contain.
    fn add_shards(&mut self, index: &Path) -> Result<()> {
        let bytes = read_file(index, MAX_HEADER_BYTES)?
            .ok_or_else(|| damaged(index, "is there no longer"))?;
        let Index { weight_map: UniqueMap(weight_map) } = serde_json::from_slice(&bytes)
            .map_err(|e| damaged(index, format!("is not a valid shard index: {e}")))?;
        let mut numbers = BTreeMap::new();
        for (name, file) in &weight_map {
            // A link inside the folder may point anywhere, as it does in a download cache; a name
            // from a downloaded file may not.
            let inside = !file.is_empty()
                && Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside {
                return Err(damaged(
                    index,
                    format!("weight_map puts tensor {name:?} into {file:?}, outside the folder"),
                ));
            }
            let path = self.folder.join(file);
            let number = match numbers.get(file) {
                Some(&number) => number,
                None => {
                    if !exists(&path)? {
                        return Err(damaged(
                            index,
                            format!(
                                "shard {file:?}, with tensor {name:?}, is missing; download it \
                                 into the same folder"
                            ),
                        ));
                    }
                    self.add(path.clone())?;
                    numbers.insert(file, self.shards.len() - 1);
                    self.shards.len() - 1
                }
            };
            if self.tensors.get(name).is_none_or(|place| place.shard != number) {
                return Err(damaged(
                    &path,
                    format!("does not hold tensor {name:?}, which {INDEX} says is there"),
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.into(), reason: reason.into() }
}

/// Why a folder has no weights.
fn nothing_found(folder: &Path) -> Result<String> {
    for name in PICKLED {
        if exists(&folder.join(name))? {
            return Ok(format!(
                "has {name} but no safetensors, and pickled weights are not read; convert them in \
                 Python: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, \
                 safe_serialization=True)"
            ));
        }
    }
    Ok(format!("has no weights: neither {SINGLE} nor {INDEX} is there"))
}
