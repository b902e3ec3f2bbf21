//! A safetensors file's header, checked.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::folder::LFS_POINTER;

/// The format's own limit for a header.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes that hold the header's length.
pub(super) const LENGTH_BYTES: usize = 8;

/// Bytes at the beginning that tell what a file is.
pub(super) const START_BYTES: usize = 32;

/// The tensors a file holds, and where its data begins.
pub(super) struct Header {
    /// By name; offsets count from `data_start`.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The first byte behind the header.
    pub data_start: u64,
}

impl Header {
    /// The header's length in bytes, from the first [`START_BYTES`] of a file of `file_bytes`, which holds
    /// all of it. The error is the reason alone.
    pub fn length(start: &[u8], file_bytes: u64) -> Result<usize, String> {
        if start.is_empty() {
            return Err("the file is empty; download it again".into());
        }
        let (length, _) = start.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| {
            format!("truncated: {file_bytes} bytes cannot hold a safetensors header")
        })?;
        let length = u64::from_le_bytes(*length);
        if start.starts_with(LFS_POINTER) {
            return Err("is a git-lfs pointer in place of the file; run git lfs pull".into());
        }
        if length > MAX_HEADER_BYTES {
            return Err(format!(
                "not a safetensors file: its header claims {length} bytes, at most \
                 {MAX_HEADER_BYTES} are allowed"
            ));
        }
        let rest = file_bytes.saturating_sub(LENGTH_BYTES as u64);
        if rest < length {
            return Err(format!(
                "truncated: the header has {length} bytes but the file ends after {rest}; download it \
                 again"
            ));
        }
        // At most `MAX_HEADER_BYTES`, so it fits.
        Ok(length as usize)
    }

    /// Reads the header, behind which the file has `data_bytes`. The error is the reason alone.
    ///
    /// On success every tensor's range lies inside the file and has the length that its shape and
    /// dtype ask for, and the ranges cover the data without overlap or hole.
    pub fn parse(json: &[u8], data_bytes: usize) -> Result<Header, String> {
        let UniqueMap(tensors) = serde_json::from_slice::<UniqueMap<TensorInfo>>(json)
            .map_err(|e| format!("the header is not valid safetensors JSON: {e}"))?;
        check(&tensors, data_bytes)?;
        Ok(Header { tensors, data_start: (LENGTH_BYTES + json.len()) as u64 })
    }
}

/// Every range against its shape, its neighbours and the file's end.
fn check(tensors: &BTreeMap<String, TensorInfo>, data_bytes: usize) -> Result<(), String> {
    let mut ranges = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        if start > end {
            return Err(format!("tensor {name:?} has offsets {start}..{end}, which run backwards"));
        }
        if end > data_bytes {
            return Err(format!(
                "tensor {name:?} has offsets {start}..{end} but the file holds {data_bytes} bytes \
                 of data; it is truncated or damaged, download it again"
            ));
        }
        let bytes = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize(), |product, &dim| product.checked_mul(dim))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8);
        if bytes != Some(end - start) {
            return Err(format!(
                "tensor {name:?} of shape {:?} and dtype {} cannot have {} bytes",
                info.shape,
                info.dtype,
                end - start
            ));
        }
        ranges.push((start, end, name));
    }
    ranges.sort_unstable();
    let mut covered = 0;
    for (start, end, name) in ranges {
        if start < covered {
            return Err(format!("tensor {name:?} at {start}..{end} overlaps another one"));
        }
        if start > covered {
            return Err(format!(
                "bytes {covered}..{start}, before tensor {name:?}, are no tensor's"
            ));
        }
        covered = end;
    }
    if covered != data_bytes {
        return Err(format!("bytes {covered}..{data_bytes}, at the end, are no tensor's"));
    }
    Ok(())
}

/// A JSON object whose keys must differ: serde's maps would silently keep the last of two.
/// `__metadata__`, which the format sets aside for free text, is skipped.
pub(super) struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object keyed by tensor name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some(name) = access.next_key::<String>()? {
                    if name == "__metadata__" {
                        access.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value = access.next_value()?;
                    if map.contains_key(&name) {
                        return Err(serde::de::Error::custom(format!(
                            "tensor {name:?} is listed twice"
                        )));
                    }
                    map.insert(name, value);
                }
                Ok(UniqueMap(map))
            }
        }
        deserializer.deserialize_map(Unique(PhantomData))
    }
}
