//! Activations times weights, for any number of rows.
//!
//! The sum of one row and one output runs over the pairs of inputs in order, in one accumulator,
//! whatever the number of rows and threads: so a row's result never depends on its neighbours.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::isa::{Isa, vectorized};
use super::matrix::{Matrix, PANEL};
use super::simd::{LANES, Lanes};
use crate::tensor::bf16;

/// Rows that run through one panel before the next panel is read.
pub const BLOCK: usize = 96;

/// Pairs of inputs of one panel that all rows of a block run through before the next ones are
/// read: 128 KiB of weights, which stay in the second-level cache beside the rows.
const BLOCK_PAIRS: usize = 512;

/// Multiply-adds below which waking another thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 20;

/// The sums of up to [`BLOCK`] rows and one panel of outputs, `[rows, PANEL]`.
pub type Sums = Vec<[f32; PANEL]>;

/// `x: [rows, inputs]` as pairs of inputs in one word each, `[rows, pairs]`.
pub fn pairs(rows: usize, inputs: usize, x: &[bf16]) -> Cow<'_, [u32]> {
    let x = &x[..rows * inputs];
    let join = |low: bf16, high: bf16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    // SAFETY: any two bf16 are a valid u32; `align_to` takes care of alignment.
    if let ([], words, []) = unsafe { x.align_to::<u32>() }
        && inputs.is_multiple_of(2)
        && cfg!(target_endian = "little")
    {
        return Cow::Borrowed(words);
    }
    let row_pairs = |row: &[bf16]| -> Vec<u32> {
        row.chunks(2).map(|p| join(p[0], p.get(1).copied().unwrap_or_default())).collect()
    };
    x.chunks(inputs).flat_map(row_pairs).collect()
}

/// Computes all sums and hands them to `write(row, first_output, sums)`, from several threads,
/// each place once.
pub fn matmul(
    isa: Isa,
    rows: usize,
    x: &[bf16],
    weight: &Matrix,
    write: impl Fn(usize, usize, &[f32]) + Sync,
) {
    let x = pairs(rows, weight.inputs, x);
    let blocks = rows.div_ceil(BLOCK);
    let item = |sums: &mut Sums, index: usize| {
        let (panel, block) = (index / blocks, index % blocks);
        let first = block * BLOCK;
        panel_sums(isa, first..rows.min(first + BLOCK), &x, weight, panel, sums);
        let output = panel * PANEL;
        let outputs = PANEL.min(weight.outputs - output);
        for (offset, sums) in sums.iter().enumerate() {
            write(first + offset, output, &sums[..outputs]);
        }
    };
    let items = blocks * weight.panels();
    if rows * weight.inputs * weight.outputs < WORTH_A_THREAD {
        let mut sums = Sums::new();
        (0..items).for_each(|index| item(&mut sums, index));
    } else {
        (0..items).into_par_iter().for_each_init(Sums::new, item);
    }
}

vectorized! {
    /// The sums of `rows`, at most [`BLOCK`] of them, and one panel.
    pub fn panel_sums(
        rows: Range<usize>,
        x: &[u32],
        weight: &Matrix,
        panel: usize,
        sums: &mut Sums,
    ) = block::<S>;
}

#[inline(always)]
fn block<S: Lanes>(rows: Range<usize>, x: &[u32], weight: &Matrix, panel: usize, sums: &mut Sums) {
    let pairs = weight.pairs();
    let x = &x[rows.start * pairs..rows.end * pairs];
    sums.clear();
    sums.resize(rows.len(), [0.0; PANEL]);
    for from in (0..pairs).step_by(BLOCK_PAIRS) {
        let count = BLOCK_PAIRS.min(pairs - from);
        let weights = &weight.panel(panel)[from * 2 * PANEL..][..count * 2 * PANEL];
        for (tile, sums) in sums.chunks_mut(S::ROWS).enumerate() {
            let x = &x[tile * S::ROWS * pairs + from..];
            match sums.len() {
                1 => tile_of::<S, 1>(x, pairs, weights, sums),
                2 => tile_of::<S, 2>(x, pairs, weights, sums),
                3 => tile_of::<S, 3>(x, pairs, weights, sums),
                4 => tile_of::<S, 4>(x, pairs, weights, sums),
                5 => tile_of::<S, 5>(x, pairs, weights, sums),
                _ => tile_of::<S, 6>(x, pairs, weights, sums),
            }
        }
    }
}

/// Vectors of outputs in a panel.
const VECTORS: usize = PANEL / LANES;

/// One tile, as many vectors of outputs at a time as there are registers for.
#[inline(always)]
fn tile_of<S: Lanes, const ROWS: usize>(
    x: &[u32],
    stride: usize,
    weights: &[bf16],
    sums: &mut [[f32; PANEL]],
) {
    if ROWS * VECTORS <= S::SUMS {
        pass::<S, ROWS, VECTORS>(x, stride, weights, 0, sums);
    } else if ROWS * 2 <= S::SUMS {
        for vector in (0..VECTORS).step_by(2) {
            pass::<S, ROWS, 2>(x, stride, weights, vector, sums);
        }
    } else {
        for vector in 0..VECTORS {
            pass::<S, ROWS, 1>(x, stride, weights, vector, sums);
        }
    }
}

/// Adds to the sums of `ROWS` rows, `x: [ROWS, stride]`, and `COUNT` vectors of outputs from
/// `vector` on; `weights: [pairs, PANEL, 2]`.
#[inline(always)]
fn pass<S: Lanes, const ROWS: usize, const COUNT: usize>(
    x: &[u32],
    stride: usize,
    weights: &[bf16],
    vector: usize,
    sums: &mut [[f32; PANEL]],
) {
    assert_eq!(sums.len(), ROWS);
    let weights = weights.as_chunks::<{ 2 * LANES }>().0.as_chunks::<VECTORS>().0;
    let mut rows = [x; ROWS];
    let mut acc = [[S::splat(0.0); COUNT]; ROWS];
    for row in 0..ROWS {
        rows[row] = &x[row * stride..][..weights.len()];
        for (acc, sum) in acc[row].iter_mut().zip(&sums[row].as_chunks::<LANES>().0[vector..]) {
            *acc = S::load(sum);
        }
    }
    for (pair, weights) in weights.iter().enumerate() {
        let mut w = [S::pairs(&weights[vector]); COUNT];
        for at in 1..COUNT {
            w[at] = S::pairs(&weights[vector + at]);
        }
        for row in 0..ROWS {
            let word = S::splat_pair(rows[row][pair]);
            for at in 0..COUNT {
                acc[row][at] = acc[row][at].dot(w[at], word);
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums) {
        for (acc, sum) in acc.into_iter().zip(&mut sums.as_chunks_mut::<LANES>().0[vector..]) {
            acc.store(sum);
        }
    }
}
