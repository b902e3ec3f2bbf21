//! The named ways to answer, each of them settings of the one search.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Chunk-level beam search: weak-to-strong search.
    Cbs,
    /// Best of N whole responses.
    Bon,
    /// Emulated fine-tuning: the guide shifts every token's logits.
    Eft,
    /// The base model alone.
    Sample,
}

/// What a user says of W, K and L; the method knows the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// W
    pub beam_width: Option<usize>,
    /// K
    pub successors: Option<usize>,
    /// L
    pub chunk_len: Option<ChunkLen>,
}

/// W, K and L, all of them known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaped {
    /// W
    pub beam_width: usize,
    /// K
    pub successors: usize,
    /// L; none means up to the end.
    pub chunk_len: Option<usize>,
}

impl Method {
    /// As it is written in flags, requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Method::Cbs => "cbs",
            Method::Bon => "bon",
            Method::Eft => "eft",
            Method::Sample => "sample",
        }
    }

    /// The method's own W, K and L where the user gives none; an error, by the flag's name, where
    /// one is given that means nothing.
    pub fn shape(self, given: Shape) -> Result<Shaped> {
        let refuse = |flag: &str, given: bool| {
            let reason = format!("has no meaning with --method {}", self.name());
            if given { Err(Error::flag(flag, reason)) } else { Ok(()) }
        };
        let whole = matches!(self, Method::Bon | Method::Sample);
        refuse("--beam-width", whole && given.beam_width.is_some())?;
        refuse("--chunk-len", whole && given.chunk_len.is_some())?;
        refuse("--successors", self == Method::Sample && given.successors.is_some())?;
        let (w, k, l) = match self {
            Method::Cbs => (4, 4, Some(10)),
            Method::Bon => (1, 16, None),
            Method::Eft | Method::Sample => (1, 1, None),
        };
        Ok(Shaped {
            beam_width: given.beam_width.unwrap_or(w),
            successors: given.successors.unwrap_or(k),
            chunk_len: given.chunk_len.map_or(l, |len| len.0),
        })
    }
}

/// A number of tokens, or `inf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLen(pub Option<usize>);

impl FromStr for ChunkLen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "inf" => Ok(Self(None)),
            _ => text.parse().map(|n| Self(Some(n))).map_err(|_| "must be a number or inf".into()),
        }
    }
}
