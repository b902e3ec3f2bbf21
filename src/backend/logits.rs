//! Logits of some rows, and the maxima by which the largest of a row are found.

use super::Backend;
use crate::error::Result;

/// Neighbouring tokens of a vocabulary of which [`Logits`] has the maximum.
pub const LOGIT_GROUP: usize = 16;

/// Logits, and the largest of each group of [`LOGIT_GROUP`] neighbouring tokens where a backend keeps these.
///
/// The k-th largest of a row's maxima is at most its k-th largest logit, so the k largest logits lie in groups
/// whose maximum reaches it: [`Backend::sample`] need not read the others. An op that writes values writes their maxima too.
pub struct Logits<B: Backend> {
    /// Tokens of a row.
    pub vocab: usize,
    /// `[rows, vocab]`
    pub values: B::Buffer<f32>,
    /// `[rows, groups]`, groups = ⌈vocab / 16⌉: `maxima[r][g]` is the largest of `values[r][16 g..16 g + 16]`, or
    /// of as many as there are, and NaN if one of them is. Empty where the backend keeps none.
    pub maxima: B::Buffer<f32>,
}

impl<B: Backend> Logits<B> {
    /// Zeros.
    pub fn new(backend: &B, rows: usize, vocab: usize) -> Result<Self> {
        let values = backend.alloc(rows * vocab)?;
        let maxima = backend.alloc(Self::maxima_len(backend, rows, vocab))?;
        Ok(Self { vocab, values, maxima })
    }

    /// Those of the host, `[rows, vocab]`.
    pub fn of(backend: &B, vocab: usize, values: &[f32]) -> Result<Self> {
        let mut logits = Self::new(backend, values.len() / vocab, vocab)?;
        backend.upload(values, &mut logits.values)?;
        if backend.keeps_maxima() {
            let groups = values.chunks_exact(vocab).flat_map(|row| row.chunks(LOGIT_GROUP));
            let maxima: Vec<f32> = groups.map(max_or_nan).collect();
            backend.upload(&maxima, &mut logits.maxima)?;
        }
        Ok(logits)
    }

    /// Bytes that [`Logits::new`] takes.
    pub fn bytes(backend: &B, rows: usize, vocab: usize) -> usize {
        (rows * vocab + Self::maxima_len(backend, rows, vocab)) * size_of::<f32>()
    }

    fn maxima_len(backend: &B, rows: usize, vocab: usize) -> usize {
        if backend.keeps_maxima() { rows * vocab.div_ceil(LOGIT_GROUP) } else { 0 }
    }
}

/// The largest, or NaN if one is.
fn max_or_nan(group: &[f32]) -> f32 {
    let larger = |a: f32, &b: &f32| if a.is_nan() || a > b { a } else { b };
    group.iter().fold(f32::NEG_INFINITY, larger)
}
