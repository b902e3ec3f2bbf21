//! Ops that treat each row, or each number, by itself.

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::{narrow, sum, widen};
use crate::backend::{Advance, Entries, Heads, NO_SLOT, NO_TOKEN, PAGE_LEN, PoolShape};
use crate::tensor::bf16;

#[inline(always)]
fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [bf16]) {
    let mean = sum(x, |x| x * x) / x.len() as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = narrow(x * factor * weight);
    }
}

#[inline(always)]
fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [bf16]) {
    let count = x.len() as f32;
    let mean = sum(x, |x| x) / count;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
    let factor = 1.0 / (variance + eps).sqrt();
    for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = narrow((x - mean) * factor * weight + bias);
    }
}

#[inline(always)]
fn rope_row(heads: Heads, cos_sin: &[f32], qkv: &mut [bf16]) {
    let half = heads.dim / 2;
    let (cos, sin) = cos_sin.split_at(half);
    for head in qkv[..(heads.query + heads.kv) * heads.dim].chunks_exact_mut(heads.dim) {
        let (low, high) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (widen(low[i]), widen(high[i]));
            low[i] = narrow(a * cos[i] - b * sin[i]);
            high[i] = narrow(b * cos[i] + a * sin[i]);
        }
    }
}

impl Entries<'_, CpuBackend> {
    /// The entries that a row stands for.
    pub(super) fn of(&self, row: usize) -> &[u32] {
        &self.list[self.starts[row] as usize..self.starts[row + 1] as usize]
    }
}

/// One row's key and value of one head into a slot.
///
/// # Safety
/// As [`Shared::range`]: nobody else may read or write that head's part of the slot.
pub unsafe fn store_kv(
    layer: usize,
    shape: PoolShape,
    head: usize,
    qkv: &[bf16],
    slot: usize,
    pool: Shared<bf16>,
) {
    let Heads { query, kv, dim } = shape.heads;
    let (page, offset) = (slot / PAGE_LEN, slot % PAGE_LEN);
    assert!(page < shape.pages, "page {page} of {}", shape.pages);
    for which in 0..2 {
        let from = (query + which * kv + head) * dim;
        let to = shape.offset(layer, page, head, which) + offset * dim;
        // SAFETY: as the function's.
        unsafe { pool.range(to, dim) }.copy_from_slice(&qkv[from..from + dim]);
    }
}

vectorized! {
    /// One row: `x / sqrt(mean(x²) + eps) · weight`
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [bf16]) = rms_norm_row;
    /// One row: `(x − mean) / sqrt(var + eps) · weight + bias`
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [bf16]) = layer_norm_row;
    /// One row's queries and keys, `[q + kv, head_dim]`, turned by `cos_sin: [head_dim]`.
    pub fn rope(heads: Heads, cos_sin: &[f32], qkv: &mut [bf16]) = rope_row;
}

/// Moves rows to their next tokens; see [`Backend::advance`](crate::backend::Backend::advance).
pub fn advance(args: Advance<'_, CpuBackend>) {
    let Advance { rows, step, drawn, ends, tables, table_stride, .. } = args;
    let Advance { tokens, positions, slots, history, .. } = args;
    let history = &mut history[step * rows..][..rows];
    for row in 0..rows {
        let ended = slots[row] == NO_SLOT;
        let token = if ended { tokens[row] } else { drawn[row] };
        history[row] = token;
        tokens[row] = if token == NO_TOKEN { 0 } else { token };
        if ended || token == NO_TOKEN || ends.contains(&token) {
            (positions[row], slots[row]) = (0, NO_SLOT);
            continue;
        }
        positions[row] += 1;
        let (page, offset) =
            (positions[row] as usize / PAGE_LEN, positions[row] as usize % PAGE_LEN);
        if page < table_stride {
            slots[row] = tables[row * table_stride + page] * PAGE_LEN as u32 + offset as u32;
        }
    }
}
