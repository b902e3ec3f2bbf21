//! Activations times weights on tiles: 16 rows by 16 outputs, 32 inputs an instruction.
//!
//! The kernel is generic over [`Tiles`], whose instructions are AMX's in amx.rs and plain loops
//! here, so that it is proved on machines without them. A sum runs over steps of 16 pairs of inputs
//! in order, in one tile: a row's result depends on nothing but itself.

use std::ops::Range;

use super::matmul::Sums;
use super::matrix::{BLOCK_PAIRS, Matrix, PANEL, VECTORS, WeightPairs};
use super::simd::LANES;
use crate::tensor::bf16;

/// Rows of a tile, and pairs of inputs of a step. A tile's row has 64 bytes: 16 sums, or 16 pairs.
pub const TILE: usize = 16;

// A step takes whole pairs of one vector of a panel, and steps do not straddle blocks.
const _: () = assert!(TILE == LANES && BLOCK_PAIRS.is_multiple_of(TILE));

/// Eight tiles of 16 rows of 64 bytes, by number.
pub trait Tiles {
    /// Tiles that are ready, with anything in them.
    fn new() -> Self;
    /// Sets a tile to zeros.
    fn zero<const T: usize>(&mut self);
    /// Loads a tile whose rows begin `stride` numbers apart.
    fn load<const T: usize>(&mut self, from: &[bf16], stride: usize);
    /// `C[row][output] += Σ A[row][pair] · B[pair][output]` over 16 pairs of bf16, sums in f32.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
    /// Stores a tile of sums into one vector of 16 rows of a panel.
    fn store<const T: usize>(&mut self, to: &mut [[f32; PANEL]], vector: usize);
}

/// Pairs from one row of inputs to the next: whole steps.
pub fn stride(pairs: usize) -> usize {
    pairs.next_multiple_of(TILE)
}

/// The sums of `rows`, which begin with a whole tile, and one panel; `x: [rows, stride]` with
/// whole tiles of rows, zeros where there is nothing (see [`words`](super::matmul::words)).
#[inline(always)]
pub fn block<T: Tiles>(
    rows: Range<usize>,
    x: &[u32],
    weight: &Matrix,
    panel: usize,
    sums: &mut Sums,
) {
    let mut tiles = T::new();
    let (count, stride) = (rows.len(), 2 * stride(weight.pairs()));
    // SAFETY: a u32 is two bf16, any bits are one.
    let x = &unsafe { x.align_to::<bf16>() }.1[rows.start * stride..];
    sums.clear();
    sums.resize(count.next_multiple_of(TILE), [0.0; PANEL]);
    for (index, sums) in sums.chunks_mut(2 * TILE).enumerate() {
        let x = &x[index * 2 * TILE * stride..];
        if sums.len() > TILE {
            square::<T>(&mut tiles, x, stride, weight, panel, 0, sums);
            square::<T>(&mut tiles, x, stride, weight, panel, 2, sums);
        } else {
            strip::<T>(&mut tiles, x, stride, weight, panel, sums);
        }
    }
    sums.truncate(count);
}

/// Each step of a panel: its first pair, and the weights of its pairs for each vector.
#[inline(always)]
fn steps(weight: &Matrix, panel: usize, mut each: impl FnMut(usize, [&[WeightPairs]; VECTORS])) {
    for from in (0..weight.pairs()).step_by(BLOCK_PAIRS) {
        let block = weight.block(panel, from);
        let count = block.len() / VECTORS;
        for step in (0..count).step_by(TILE) {
            let pairs = step..count.min(step + TILE);
            let mut vectors = [block; VECTORS];
            for (vector, weights) in vectors.iter_mut().enumerate() {
                *weights = &block[vector * count..][pairs.clone()];
            }
            each(from + step, vectors);
        }
    }
}

/// Two tiles of rows by two of outputs, from `vector` on.
#[inline(always)]
fn square<T: Tiles>(
    tiles: &mut T,
    x: &[bf16],
    stride: usize,
    weight: &Matrix,
    panel: usize,
    vector: usize,
    sums: &mut [[f32; PANEL]],
) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
    steps(weight, panel, |pair, weights| {
        tiles.load::<4>(&x[2 * pair..], stride);
        tiles.load::<5>(&x[TILE * stride + 2 * pair..], stride);
        load_weights::<T, 6>(tiles, weights[vector]);
        load_weights::<T, 7>(tiles, weights[vector + 1]);
        tiles.dot::<0, 4, 6>();
        tiles.dot::<1, 4, 7>();
        tiles.dot::<2, 5, 6>();
        tiles.dot::<3, 5, 7>();
    });
    let (upper, lower) = sums.split_at_mut(TILE);
    tiles.store::<0>(upper, vector);
    tiles.store::<1>(upper, vector + 1);
    tiles.store::<2>(lower, vector);
    tiles.store::<3>(lower, vector + 1);
}

/// One tile of rows by all four of outputs.
#[inline(always)]
fn strip<T: Tiles>(
    tiles: &mut T,
    x: &[bf16],
    stride: usize,
    weight: &Matrix,
    panel: usize,
    sums: &mut [[f32; PANEL]],
) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
    steps(weight, panel, |pair, weights| {
        tiles.load::<4>(&x[2 * pair..], stride);
        load_weights::<T, 6>(tiles, weights[0]);
        load_weights::<T, 7>(tiles, weights[1]);
        tiles.dot::<0, 4, 6>();
        tiles.dot::<1, 4, 7>();
        load_weights::<T, 6>(tiles, weights[2]);
        load_weights::<T, 7>(tiles, weights[3]);
        tiles.dot::<2, 4, 6>();
        tiles.dot::<3, 4, 7>();
    });
    tiles.store::<0>(sums, 0);
    tiles.store::<1>(sums, 1);
    tiles.store::<2>(sums, 2);
    tiles.store::<3>(sums, 3);
}

/// Loads a step's weights, with zeros for pairs beyond the last.
#[inline(always)]
fn load_weights<T: Tiles, const B: usize>(tiles: &mut T, weights: &[WeightPairs]) {
    if weights.len() == TILE {
        tiles.load::<B>(weights.as_flattened(), 2 * LANES);
    } else {
        let mut padded = [WeightPairs::default(); TILE];
        padded[..weights.len()].copy_from_slice(weights);
        tiles.load::<B>(padded.as_flattened(), 2 * LANES);
    }
}

/// Tiles in plain Rust.
pub struct PortableTiles {
    /// Eight tiles of 16 rows of 16 words.
    words: [[[u32; LANES]; TILE]; 8],
}

impl Tiles for PortableTiles {
    fn new() -> Self {
        // What was in the tiles before must not matter.
        Self { words: [[[f32::NAN.to_bits(); LANES]; TILE]; 8] }
    }

    fn zero<const T: usize>(&mut self) {
        self.words[T] = [[0; LANES]; TILE];
    }

    fn load<const T: usize>(&mut self, from: &[bf16], stride: usize) {
        for (row, words) in self.words[T].iter_mut().enumerate() {
            let numbers = &from[row * stride..][..2 * LANES];
            for (word, pair) in words.iter_mut().zip(numbers.as_chunks::<2>().0) {
                *word = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
            }
        }
    }

    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let even = |word: u32| f32::from_bits(word << 16);
        let odd = |word: u32| f32::from_bits(word & 0xffff_0000);
        let (a, b) = (self.words[A], self.words[B]);
        for (sums, a) in self.words[C].iter_mut().zip(a) {
            for (a, b) in a.into_iter().zip(b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    let products = even(a) * even(b) + odd(a) * odd(b);
                    *sum = (f32::from_bits(*sum) + products).to_bits();
                }
            }
        }
    }

    fn store<const T: usize>(&mut self, to: &mut [[f32; PANEL]], vector: usize) {
        for (row, words) in to.iter_mut().zip(&self.words[T]) {
            for (sum, word) in row[vector * LANES..].iter_mut().zip(words) {
                *sum = f32::from_bits(*word);
            }
        }
    }
}
