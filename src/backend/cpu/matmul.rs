//! Activations times weights, for any number of rows.
//!
//! The sum of one row and one output runs over the pairs of inputs in order, in one accumulator,
//! whatever the number of rows and threads: so a row's result never depends on its neighbours.

use std::borrow::Cow;

use rayon::prelude::*;

use super::isa::Isa;
use super::matrix::{Matrix, PANEL};
use crate::tensor::bf16;

/// Rows that one pass over a panel serves: with four vectors of outputs each, their sums fill
/// the registers of AVX-512.
const TILE: usize = 6;

/// Rows that run through one panel before the next panel is read.
const BLOCK: usize = 96;

/// Multiply-adds below which waking another thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 20;

/// Sums of up to [`TILE`] rows and one panel of outputs.
pub type Tile = [[f32; PANEL]; TILE];

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
    let item = |index: usize| {
        let (panel, block) = (index / blocks, index % blocks);
        let first = block * BLOCK;
        for_each_tile(isa, first..rows.min(first + BLOCK), &x, weight, panel, |row, tile| {
            let output = panel * PANEL;
            let outputs = PANEL.min(weight.outputs - output);
            for (offset, sums) in tile.iter().enumerate() {
                write(row + offset, output, &sums[..outputs]);
            }
        });
    };
    let items = blocks * weight.panels();
    if rows * weight.inputs * weight.outputs < WORTH_A_THREAD {
        (0..items).for_each(item);
    } else {
        (0..items).into_par_iter().for_each(item);
    }
}

/// The sums of `rows` and one panel, a few rows at a time: `each(first_row, sums)`.
pub fn for_each_tile(
    isa: Isa,
    rows: std::ops::Range<usize>,
    x: &[u32],
    weight: &Matrix,
    panel: usize,
    mut each: impl FnMut(usize, &[[f32; PANEL]]),
) {
    let pairs = weight.pairs();
    let mut sums: Tile = [[0.0; PANEL]; TILE];
    for first in rows.clone().step_by(TILE) {
        let count = TILE.min(rows.end - first);
        let x = &x[first * pairs..(first + count) * pairs];
        tile(isa, count, x, weight.panel(panel), &mut sums);
        each(first, &sums[..count]);
    }
}

/// The sums of `count` rows, `x: [count, pairs]`, and one panel.
fn tile(isa: Isa, count: usize, x: &[u32], panel: &[bf16], sums: &mut Tile) {
    match count {
        1 => tile_of::<1>(isa, x, panel, sums),
        2 => tile_of::<2>(isa, x, panel, sums),
        3 => tile_of::<3>(isa, x, panel, sums),
        4 => tile_of::<4>(isa, x, panel, sums),
        5 => tile_of::<5>(isa, x, panel, sums),
        _ => tile_of::<6>(isa, x, panel, sums),
    }
}

fn tile_of<const ROWS: usize>(isa: Isa, x: &[u32], panel: &[bf16], sums: &mut Tile) {
    let pairs = panel.len() / (2 * PANEL);
    assert_eq!(x.len(), ROWS * pairs, "{ROWS} rows of {pairs} pairs");
    match isa {
        // SAFETY: `isa` is this only if the processor has the features; the panel holds `pairs`
        // pairs and `x` as many for each row, as just checked.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => unsafe { super::x86::tile_bf16::<ROWS>(pairs, x, panel, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { super::x86::tile_avx512::<ROWS>(pairs, x, panel, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { super::x86::tile_avx2::<ROWS>(pairs, x, panel, sums) },
        _ => tile_widened::<ROWS, false>(pairs, x, panel, sums),
    }
}

/// Both numbers of each pair widened to f32: first all the even inputs' share, then the odd's.
#[inline(always)]
pub fn tile_widened<const ROWS: usize, const FUSED: bool>(
    pairs: usize,
    x: &[u32],
    panel: &[bf16],
    sums: &mut Tile,
) {
    let even = |pair: u32| f32::from_bits(pair << 16);
    let odd = |pair: u32| f32::from_bits(pair & 0xffff_0000);
    // Vectors of outputs one after the other, so that a tile's sums stay in registers.
    const LANES: usize = 16;
    for from in (0..PANEL).step_by(LANES) {
        let mut acc = [[0.0f32; LANES]; ROWS];
        for pair in 0..pairs {
            let weights = &panel[(pair * PANEL + from) * 2..][..2 * LANES];
            let mut low = [0.0; LANES];
            let mut high = [0.0; LANES];
            for lane in 0..LANES {
                low[lane] = f32::from_bits(u32::from(weights[2 * lane].to_bits()) << 16);
                high[lane] = f32::from_bits(u32::from(weights[2 * lane + 1].to_bits()) << 16);
            }
            for row in 0..ROWS {
                let word = x[row * pairs + pair];
                let (a, b) = (even(word), odd(word));
                for lane in 0..LANES {
                    let sum = acc[row][lane];
                    acc[row][lane] = if FUSED {
                        high[lane].mul_add(b, low[lane].mul_add(a, sum))
                    } else {
                        sum + low[lane] * a + high[lane] * b
                    };
                }
            }
        }
        for row in 0..ROWS {
            sums[row][from..from + LANES].copy_from_slice(&acc[row]);
        }
    }
}
