//! What becomes of a matmul's sums: the bias comes in, an activation, and they go to their places.

use super::buffer::Shared;
use super::isa::vectorized;
use super::math::narrow;
use super::matmul::{Block, Row};
use super::matrix::PANEL;
use super::simd::{self, LANES, Lanes};
use crate::tensor::bf16;

/// A matrix that several threads write, each to places of its own.
#[derive(Clone, Copy)]
pub struct Places<Y> {
    out: Shared<Y>,
    width: usize,
}

impl<Y> Places<Y> {
    /// The rows of `out: [rows, width]`.
    ///
    /// # Safety
    /// `out` must be borrowed as long as this is used, and no two threads may write the same block.
    pub unsafe fn new(out: &mut [Y], width: usize) -> Self {
        Self { out: Shared::new(out), width }
    }

    /// Where a row's sums of a block belong.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // as Shared::range
    fn of(&self, row: usize, block: &Block<'_>) -> &mut [Y] {
        // SAFETY: who made this keeps it borrowed and blocks apart.
        unsafe { self.out.range(row * self.width + block.output, block.outputs) }
    }
}

impl Block<'_> {
    /// The biases of its outputs, zeros without any.
    #[inline(always)]
    fn of(&self, bias: Option<&[f32]>) -> Row {
        let mut biases = Row::ZERO;
        if let Some(bias) = bias {
            biases.0[..self.outputs].copy_from_slice(&bias[self.output..][..self.outputs]);
        }
        biases
    }
}

vectorized! {
    /// Rounded to bf16.
    pub fn store_half(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) = halves;
    /// As they are.
    pub fn store(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) = wholes;
    /// Added to the residual stream.
    pub fn add(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) = sums;
    /// Their GELU, rounded to bf16.
    pub fn store_gelu(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) = gelus::<S>;
    /// `silu(gate) · sum`, rounded to bf16; `gates`: of the block's rows.
    pub fn store_silu_gate(
        gates: &[Row],
        block: Block<'_>,
        biases: Option<[&[f32]; 2]>,
        out: Places<bf16>,
    ) = silu_gates::<S>;
}

#[inline(always)]
fn halves(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) {
    each(block, bias, out, |out, value| *out = narrow(value));
}

#[inline(always)]
fn wholes(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) {
    each(block, bias, out, |out, value| *out = value);
}

#[inline(always)]
fn sums(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) {
    each(block, bias, out, |out, value| *out += value);
}

/// Hands `put` each sum with its bias, and its place.
#[inline(always)]
fn each<Y>(block: Block<'_>, bias: Option<&[f32]>, out: Places<Y>, put: impl Fn(&mut Y, f32)) {
    let biases = block.of(bias);
    for (row, sums) in block.rows.clone().zip(block.sums) {
        let out = out.of(row, &block);
        let numbers = sums.0.iter().zip(&biases.0);
        // All but the last panel are whole, and then the loop's length is known.
        if let Ok(out) = <&mut [Y; PANEL]>::try_from(&mut *out) {
            out.iter_mut().zip(numbers).for_each(|(out, (sum, bias))| put(out, sum + bias));
        } else {
            out.iter_mut().zip(numbers).for_each(|(out, (sum, bias))| put(out, sum + bias));
        }
    }
}

#[inline(always)]
fn gelus<S: Lanes>(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) {
    let biases = block.of(bias);
    for (row, sums) in block.rows.clone().zip(block.sums) {
        for (at, out) in out.of(row, &block).chunks_mut(LANES).enumerate() {
            let v = S::load(sums.vector(at)).add(S::load(biases.vector(at)));
            put(gelu(v), out);
        }
    }
}

#[inline(always)]
fn silu_gates<S: Lanes>(
    gates: &[Row],
    block: Block<'_>,
    biases: Option<[&[f32]; 2]>,
    out: Places<bf16>,
) {
    let gate_biases = block.of(biases.map(|[gate, _]| gate));
    let up_biases = block.of(biases.map(|[_, up]| up));
    for ((row, gates), sums) in block.rows.clone().zip(gates).zip(block.sums) {
        for (at, out) in out.of(row, &block).chunks_mut(LANES).enumerate() {
            let gate = S::load(gates.vector(at)).add(S::load(gate_biases.vector(at)));
            let up = S::load(sums.vector(at)).add(S::load(up_biases.vector(at)));
            put(silu(gate).mul(up), out);
        }
    }
}

/// `0.5 v (1 + tanh(u))`, u = sqrt(2/π) (v + 0.044715 v³)
#[inline(always)]
fn gelu<S: Lanes>(v: S) -> S {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    // 0.5 (1 + tanh(u)) = 1 / (1 + e^−2u), which has no difference of nearly equal numbers.
    let cubic = v.mul(v).mul_add(S::splat(0.044_715), S::splat(1.0));
    let e = simd::exp(v.mul(S::splat(-2.0 * SQRT_2_OVER_PI)).mul(cubic));
    v.div(e.add(S::splat(1.0)))
}

/// `v / (1 + e^−v)`
#[inline(always)]
fn silu<S: Lanes>(v: S) -> S {
    v.div(simd::exp(v.mul(S::splat(-1.0))).add(S::splat(1.0)))
}

/// As many of `values` as there is room for, rounded.
#[inline(always)]
fn put<S: Lanes>(values: S, out: &mut [bf16]) {
    let mut numbers = [0.0; LANES];
    values.store(&mut numbers);
    if let Ok(out) = <&mut [bf16; LANES]>::try_from(&mut *out) {
        out.iter_mut().zip(numbers).for_each(|(out, number)| *out = narrow(number));
    } else {
        out.iter_mut().zip(numbers).for_each(|(out, number)| *out = narrow(number));
    }
}
