//! How the memory that trimtab may take is divided.

use std::str::FromStr;

use super::models::ROWS;
use crate::backend::{Backend, Memory};
use crate::engine::{Config, Engine, Limits, Model, Pair};
use crate::error::{Error, Result};
use crate::kv_cache::PAGE_LEN;

/// A number of bytes with an optional K, M, G or T (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub usize);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_end_matches(['B', 'b']).trim_end_matches('i');
        let (digits, shift) = match text.chars().last().map(|c| c.to_ascii_uppercase()) {
            Some('K') => (&text[..text.len() - 1], 10),
            Some('M') => (&text[..text.len() - 1], 20),
            Some('G') => (&text[..text.len() - 1], 30),
            Some('T') => (&text[..text.len() - 1], 40),
            _ => (text, 0),
        };
        let number = digits.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        let number = number.ok_or("must be a number of bytes such as 800M or 4G")?;
        Ok(Self((number * (1u64 << shift) as f64) as usize))
    }
}

/// A number of bytes for people.
pub fn readable(bytes: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// What computes, and what it has taken of its budget, for people.
pub fn describe<B: Backend>(backend: &B) -> String {
    let memory: &Memory = backend.memory();
    let of = memory.limit().map_or_else(String::new, |limit| format!(" of {}", readable(limit)));
    format!("{}, {}{of} of memory", backend.describe(), readable(memory.taken()))
}

/// All that is to be loaded, as far as memory is concerned.
pub struct Needs {
    /// The base model, if it is here, and how many tokens end its texts.
    pub base: Option<(Config, usize)>,
    /// Tuned and untuned of each pair.
    pub pairs: Vec<[Config; 2]>,
    /// Caches of each pair, all of the same size: 2 where it proposes tokens too.
    pub caches: usize,
    /// Pages of a cache; more would never be used.
    pub enough: usize,
    /// Pages of a cache; with fewer there would be nothing that could ever run.
    pub least: usize,
    /// Rows whose logits exist at the same time.
    pub logit_rows: usize,
}

impl Needs {
    /// Bytes of keys and values in one page of all models together.
    fn page_bytes(&self) -> usize {
        let page = |config: &Config| config.kv_bytes_per_token() * PAGE_LEN;
        let pairs = self.pairs.iter().flatten().map(page).sum::<usize>();
        self.base.as_ref().map_or(0, |(config, _)| page(config)) + self.caches * pairs
    }

    fn limits(&self, pages: usize) -> Limits {
        Limits { pages, rows: ROWS, logit_rows: self.logit_rows }
    }

    /// Bytes for scratch memory, keys and values with so many pages.
    fn engines<B: Backend>(&self, backend: &B, pages: usize) -> usize {
        let base = self.base.as_ref().map_or(0, |(config, ends)| {
            Engine::bytes(backend, config, self.limits(pages)) + ends * size_of::<u32>()
        });
        let limits = self.limits(self.caches * pages);
        let pairs = self.pairs.iter();
        base + pairs.map(|[a, b]| Pair::bytes(backend, [a, b], limits)).sum::<usize>()
    }

    /// Pages that must fit: the least, or what `kv_memory` pays for if that is less.
    fn required(&self, kv_memory: Option<Bytes>) -> usize {
        let paid = kv_memory.map_or(usize::MAX, |bytes| bytes.0 / self.page_bytes().max(1));
        self.least.min(paid).max(1)
    }

    /// What is missing where so many pages do not fit beside weights of `weights` bytes.
    fn missing<B: Backend>(
        &self,
        backend: &B,
        pages: usize,
        weights: usize,
        taken: usize,
    ) -> Error {
        Error::DeviceBudget {
            bytes: weights + self.engines(backend, pages),
            what: match (weights > 0, pages > 1) {
                (true, true) => "weights, scratch memory, and keys and values of one search",
                (false, true) => "scratch memory, and keys and values of one search",
                (true, false) => "weights, scratch memory and a page of keys and values",
                (false, false) => "scratch memory and a page of keys and values",
            },
            taken,
            limit: backend.memory().limit().unwrap_or(usize::MAX),
        }
    }

    /// Bytes of the weights: at least, where an untuned model has all of its matrices from its twin, and
    /// at most.
    fn weights<B: Backend>(&self, backend: &B) -> [usize; 2] {
        let base = self.base.as_ref().map_or(0, |(config, _)| Model::bytes(backend, config));
        let side =
            |side: usize| self.pairs.iter().map(move |pair| Model::bytes(backend, &pair[side]));
        let least = base + side(0).sum::<usize>();
        [least, least + side(1).sum::<usize>()]
    }

    /// Loads the weights, having refused what cannot fit beforehand.
    pub fn load<B: Backend, T>(
        &self,
        backend: &B,
        kv_memory: Option<Bytes>,
        weights: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let page = self.page_bytes();
        if kv_memory.is_some_and(|bytes| bytes.0 < page) {
            let reason = format!("must be at least {page} bytes, one page of all models");
            return Err(Error::flag("--kv-memory", reason));
        }
        let [least, most] = self.weights(backend);
        let taken = backend.memory().taken();
        let left = backend.memory().left().unwrap_or(usize::MAX);
        let pages = self.required(kv_memory);
        if least + self.engines(backend, pages) > left {
            return Err(self.missing(backend, pages, most, taken));
        }
        weights().map_err(|error| match error {
            Error::DeviceBudget { .. } => self.missing(backend, pages, most, taken),
            error => error,
        })
    }

    /// The limits of each engine, once the weights are loaded: as many pages as are enough, as
    /// `kv_memory` pays for where it is given, and as fit beside the scratch memory into what the
    /// weights have left of the budget.
    pub fn divide<B: Backend>(&self, backend: &B, kv_memory: Option<Bytes>) -> Result<Limits> {
        let memory = backend.memory();
        // Where nobody knows how much there is, not too much.
        let kv_memory = kv_memory.or(memory.limit().is_none().then_some(Bytes(1 << 30)));
        let most = kv_memory.map_or(usize::MAX, |bytes| bytes.0 / self.page_bytes().max(1));
        let most = most.min(self.enough).clamp(1, 1 << 30);
        let left = memory.left().unwrap_or(usize::MAX);
        let fits = |pages| self.engines(backend, pages) <= left;
        let required = self.required(kv_memory).min(most);
        if !fits(required) {
            return Err(self.missing(backend, required, 0, memory.taken()));
        }
        // The largest that fits: at least `fitting`, less than `beyond`.
        let (mut fitting, mut beyond) = (required, most + 1);
        while fitting + 1 < beyond {
            let middle = fitting + (beyond - fitting) / 2;
            if fits(middle) { fitting = middle } else { beyond = middle }
        }
        Ok(self.limits(fitting))
    }
}
