//! One file of a checkpoint, open for reading.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use safetensors::tensor::TensorInfo;

use super::checkpoint::damaged;
use super::header::{Header, LENGTH_BYTES, START_BYTES};
use crate::error::{Error, Result};
use crate::folder::open_file;

/// Bytes that are read at once: few enough to stay in a core's cache until they are converted, and a
/// multiple of every number's size and of a hash's block.
pub(super) const PART_BYTES: usize = 256 << 10;

/// An open file. It is read and not mapped: where another program cuts a mapped file, the system ends the
/// process that looks at it.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    file: File,
    /// Its length when it was opened.
    len: u64,
    data_start: u64,
}

impl Shard {
    /// Opens a file. Returns the tensors that its header names, too.
    pub fn open(path: PathBuf) -> Result<(Self, BTreeMap<String, TensorInfo>)> {
        let (file, len) = open_file(&path)?.ok_or_else(|| damaged(&path, "is there no longer"))?;
        let mut shard = Self { path, file, len, data_start: 0 };
        let mut start = vec![0; len.min(START_BYTES as u64) as usize];
        shard.read(&mut start, 0)?;
        let refuse = |reason| damaged(&shard.path, reason);
        let length = Header::length(&start, len).map_err(refuse)?;
        let mut json = vec![0; length];
        shard.read(&mut json, LENGTH_BYTES as u64)?;
        // A file's length fits: all systems that trimtab runs on have 64 bits.
        let data_bytes = len as usize - LENGTH_BYTES - length;
        let header = Header::parse(&json, data_bytes).map_err(refuse)?;
        shard.data_start = header.data_start;
        Ok((shard, header.tensors))
    }

    /// Calls `each` with a tensor's bytes, part by part, each but the last of [`PART_BYTES`].
    pub fn each_part(&self, info: &TensorInfo, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut parts = self.parts(info);
        while let Some(part) = parts.next()? {
            each(part);
        }
        Ok(())
    }

    /// A tensor's bytes, part by part.
    pub fn parts(&self, info: &TensorInfo) -> Parts<'_> {
        let (start, end) = info.data_offsets;
        let left = end - start;
        let at = self.data_start + start as u64;
        Parts { shard: self, buffer: vec![0; left.min(PART_BYTES)], at, left }
    }

    /// Fills `bytes` from the file's byte `at` on.
    fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                let now = self.file.metadata().map(|metadata| metadata.len());
                let now = now.map_or_else(|_| "fewer".into(), |len| len.to_string());
                damaged(
                    &self.path,
                    format!(
                        "was cut while it was read: it had {} bytes and has {now}; download it again, and \
                         start trimtab when that is done",
                        self.len
                    ),
                )
            }
            _ => Error::io("read", &self.path)(error),
        })
    }
}

/// The parts of a tensor's bytes that are still to be read.
pub(super) struct Parts<'a> {
    shard: &'a Shard,
    buffer: Vec<u8>,
    at: u64,
    left: usize,
}

impl Parts<'_> {
    /// The next part; `None` behind the last one.
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        let len = self.left.min(self.buffer.len());
        if len == 0 {
            return Ok(None);
        }
        let part = &mut self.buffer[..len];
        self.shard.read(part, self.at)?;
        self.at += len as u64;
        self.left -= len;
        Ok(Some(part))
    }
}
