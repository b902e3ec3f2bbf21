//! What becomes of a matmul's sums: the bias comes in, and they go to their places.

use super::buffer::Shared;
use super::isa::vectorized;
use super::math::narrow;
use super::matmul::Block;
use super::matrix::PANEL;
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
}

vectorized! {
    /// Rounded to bf16.
    pub fn store_half(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) = halves;
    /// As they are.
    pub fn store(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) = wholes;
    /// Added to the residual stream.
    pub fn add(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) = sums;
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
    let Block { rows, output, outputs, sums } = block;
    let mut biases = [0.0; PANEL];
    if let Some(bias) = bias {
        biases[..outputs].copy_from_slice(&bias[output..][..outputs]);
    }
    for (row, sums) in rows.zip(sums) {
        // SAFETY: who made `out` keeps it borrowed and blocks apart.
        let out = unsafe { out.out.range(row * out.width + output, outputs) };
        let numbers = sums.0.iter().zip(&biases);
        // All but the last panel are whole, and then the loop's length is known.
        if let Ok(out) = <&mut [Y; PANEL]>::try_from(&mut *out) {
            out.iter_mut().zip(numbers).for_each(|(out, (sum, bias))| put(out, sum + bias));
        } else {
            out.iter_mut().zip(numbers).for_each(|(out, (sum, bias))| put(out, sum + bias));
        }
    }
}
