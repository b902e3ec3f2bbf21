//! Ops that treat each row, or each number, by itself.

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::{exp, narrow, sum, widen};
use super::simd::{self, LANES, Lanes};
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

#[inline(always)]
fn silu_gate_row(gate_up: &[bf16], out: &mut [bf16]) {
    let (gate, up) = gate_up.split_at(out.len());
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        let gate = widen(gate);
        *out = narrow(gate / (1.0 + exp(-gate)) * widen(up));
    }
}

#[inline(always)]
fn gelu_row<S: Lanes>(x: &mut [bf16]) {
    let (whole, rest) = x.as_chunks_mut();
    whole.iter_mut().for_each(gelu_lanes::<S>);
    if !rest.is_empty() {
        let mut padded = [bf16::ZERO; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        gelu_lanes::<S>(&mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

#[inline(always)]
fn gelu_lanes<S: Lanes>(x: &mut [bf16; LANES]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let v = S::widen(x);
    // 0.5 (1 + tanh(u)) = 1 / (1 + e^−2u), which has no difference of nearly equal numbers.
    let cubic = v.mul(v).mul_add(S::splat(0.044_715), S::splat(1.0));
    let e = simd::exp(v.mul(S::splat(-2.0 * SQRT_2_OVER_PI)).mul(cubic));
    let mut out = [0.0; LANES];
    v.div(e.add(S::splat(1.0))).store(&mut out);
    for (x, value) in x.iter_mut().zip(out) {
        *x = narrow(value);
    }
}

vectorized! {
    /// One row: `x / sqrt(mean(x²) + eps) · weight`
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [bf16]) = rms_norm_row;
    /// One row: `(x − mean) / sqrt(var + eps) · weight + bias`
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [bf16]) = layer_norm_row;
    /// One row's queries and keys, `[q + kv, head_dim]`, turned by `cos_sin: [head_dim]`.
    pub fn rope(heads: Heads, cos_sin: &[f32], qkv: &mut [bf16]) = rope_row;
    /// One row: `silu(gate) · up`
    pub fn silu_gate(gate_up: &[bf16], out: &mut [bf16]) = silu_gate_row;
    /// One row: `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`
    pub fn gelu(x: &mut [bf16]) = gelu_row::<S>;
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
