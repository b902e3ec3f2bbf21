//! A layer's queries, keys and values as one op, and as the three that it stands for.

use super::{Backend, Entries, PoolShape};
use crate::error::Result;
use crate::tensor::bf16;

/// What [`Backend::qkv`] reads and writes, for one layer and all rows of a batch.
pub struct Qkv<'a, B: Backend> {
    /// The layer, counted from 0.
    pub layer: usize,
    /// The pool's shape.
    pub shape: PoolShape,
    /// `[rows, in]`
    pub x: &'a B::Buffer<bf16>,
    /// `[(q + 2 kv) * head_dim, in]`
    pub weight: &'a B::Matrix,
    /// `[(q + 2 kv) * head_dim]`
    pub bias: Option<&'a B::Buffer<f32>>,
    /// Where positions are rotations.
    pub rotary: Option<Rotary<'a, B>>,
    /// The entries that each row stands for.
    pub entries: Entries<'a, B>,
    /// `[entries]` as [`Backend::store_kv`] has them.
    pub slots: &'a B::Buffer<u32>,
    /// All keys and values.
    pub pool: &'a mut B::Buffer<bf16>,
    /// `[rows, (q + 2 kv) * head_dim]`, of which only the queries are sure to be written.
    pub out: &'a mut B::Buffer<bf16>,
}

/// What queries and keys are rotated by, as in [`Backend::rope`].
pub struct Rotary<'a, B: Backend> {
    /// `[rows]`
    pub positions: &'a B::Buffer<u32>,
    /// `[positions, head_dim]`: cosines, then sines.
    pub cos_sin: &'a B::Buffer<f32>,
}

impl<B: Backend> Qkv<'_, B> {
    /// The same by [`Backend::matmul`], [`Backend::rope`] and [`Backend::store_kv`].
    pub fn in_parts(self, backend: &B) -> Result<()> {
        let Self { layer, shape, x, weight, bias, rotary, entries, slots, pool, out } = self;
        backend.matmul(entries.rows, x, weight, bias, out)?;
        if let Some(Rotary { positions, cos_sin }) = rotary {
            backend.rope(entries.rows, shape.heads, positions, cos_sin, out)?;
        }
        backend.store_kv(layer, shape, out, entries, slots, pool)
    }
}
