//! Activations times weights on tiles: 16 rows by 16 outputs, 32 inputs an instruction.
//!
//! The kernel is generic over [`Tiles`], whose instructions are AMX's in amx.rs and plain loops
//! here, so that it is proved on machines without them. A sum runs over steps of 16 pairs of inputs
//! in order, in one tile: a row's result depends on nothing but itself.

use std::ops::Range;

use super::matmul::{Row, Sums, Words};
use super::matrix::{BLOCK_PAIRS, Matrix, VECTORS, WeightPairs};
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
    fn store<const T: usize>(&mut self, to: &mut [Row], vector: usize);
    /// Loads a tile of sums that was stored so.
    fn resume<const T: usize>(&mut self, from: &[Row], vector: usize);
    /// Asks for the cache line at `address`, which need not be ours.
    fn prefetch(address: *const bf16);
}

/// Pairs from one row of inputs to the next: whole steps.
pub fn stride(pairs: usize) -> usize {
    pairs.next_multiple_of(TILE)
}

/// Rows for which the weights come too slowly to be asked for beforehand as well: the processor
/// does that better by itself.
const FEW: usize = 4 * TILE;

/// Vectors of outputs that are computed together.
const TOGETHER: usize = 2;

/// The sums of `rows`, which begin with a whole tile, and one panel; `x: [rows, stride]` with
/// whole tiles of rows, zeros where there is nothing (see [`words`](super::matmul::words)). A few
/// rows' at a time are handed to `each` as soon as they are there, while they are near.
#[inline(always)]
pub fn block<T: Tiles>(
    rows: Range<usize>,
    x: &Words<'_>,
    weight: &Matrix,
    panel: usize,
    sums: &mut Sums,
    mut each: impl FnMut(Range<usize>, &[Row]),
) {
    let mut tiles = T::new();
    let stride = stride(weight.pairs());
    let x = |row: usize| x.from((rows.start + row) * stride);
    // All of it is written.
    let padded = rows.len().next_multiple_of(TILE);
    sums.resize(sums.len().max(padded), Row::ZERO);
    let sums = &mut sums[..padded];
    let mut done = |first: usize, sums: &[Row]| {
        let rows = rows.start + first..rows.end.min(rows.start + first + sums.len());
        let count = rows.len();
        each(rows, &sums[..count]);
    };
    if rows.len() <= FEW {
        for (index, sums) in sums.chunks_mut(TILE).enumerate() {
            strip::<T>(&mut tiles, x(index * TILE), stride, weight, panel, sums);
            done(index * TILE, sums);
        }
        return;
    }
    let squares = sums.len().div_ceil(2 * TILE);
    for from in (0..weight.pairs()).step_by(BLOCK_PAIRS) {
        let block = weight.block(panel, from);
        let pairs = block.len() / VECTORS;
        for vector in (0..VECTORS).step_by(TOGETHER) {
            // 16 KiB, which stay in the first-level cache while all rows run through them; those
            // that come next are asked for meanwhile.
            let weights = &block[vector * pairs..][..TOGETHER * pairs];
            let mut ahead = Ahead::new(weights, squares);
            for (index, sums) in sums.chunks_mut(2 * TILE).enumerate() {
                let row = index * 2 * TILE;
                let at = Place { from, stride, vector };
                let upper = &x(row)[from..];
                if sums.len() > TILE {
                    let lower = &x(row + TILE)[from..];
                    pass::<T, true>(&mut tiles, [upper, lower], weights, &mut ahead, sums, at);
                } else {
                    pass::<T, false>(&mut tiles, [upper, upper], weights, &mut ahead, sums, at);
                }
                if from + pairs == weight.pairs() && vector + TOGETHER == VECTORS {
                    done(row, sums);
                }
            }
        }
    }
}

/// The weights behind some others, asked for piece by piece.
struct Ahead {
    next: *const bf16,
    lines: usize,
    lines_per_step: usize,
}

impl Ahead {
    /// As many as `weights`, in as many pieces as `squares` take steps.
    #[inline(always)]
    fn new(weights: &[WeightPairs], squares: usize) -> Self {
        let steps = squares * (weights.len() / TOGETHER).div_ceil(TILE);
        let next = weights.as_ptr_range().end.cast();
        // A line holds the weights of one pair.
        Self { next, lines: weights.len(), lines_per_step: weights.len().div_ceil(steps) }
    }

    #[inline(always)]
    fn step<T: Tiles>(&mut self) {
        let lines = self.lines.min(self.lines_per_step);
        for _ in 0..lines {
            T::prefetch(self.next);
            self.next = self.next.wrapping_add(2 * LANES);
        }
        self.lines -= lines;
    }
}

/// Which part of a sum a [`pass`] adds.
#[derive(Clone, Copy)]
struct Place {
    /// The first pair of inputs.
    from: usize,
    /// Pairs from one row of inputs to the next.
    stride: usize,
    /// The first vector of outputs.
    vector: usize,
}

/// Adds a block of pairs to the sums of one tile of rows or two by two of outputs.
/// `x`: each tile's rows from the block's first pair on; `weights: [TOGETHER, pairs of the block]`
#[inline(always)]
fn pass<T: Tiles, const TWO: bool>(
    tiles: &mut T,
    x: [&[u32]; 2],
    weights: &[WeightPairs],
    ahead: &mut Ahead,
    sums: &mut [Row],
    Place { from, stride, vector }: Place,
) {
    let (upper, lower) = sums.split_at_mut(TILE);
    if from == 0 {
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
    } else {
        tiles.resume::<0>(upper, vector);
        tiles.resume::<1>(upper, vector + 1);
        if TWO {
            tiles.resume::<2>(lower, vector);
            tiles.resume::<3>(lower, vector + 1);
        }
    }
    let (left, right) = weights.split_at(weights.len() / TOGETHER);
    for (step, (left, right)) in left.chunks(TILE).zip(right.chunks(TILE)).enumerate() {
        ahead.step::<T>();
        // What is loaded is multiplied at once: the next load runs beside it.
        load_weights::<T, 6>(tiles, left);
        tiles.load::<4>(pairs_of(&x[0][step * TILE..]), 2 * stride);
        tiles.dot::<0, 4, 6>();
        load_weights::<T, 7>(tiles, right);
        tiles.dot::<1, 4, 7>();
        if TWO {
            tiles.load::<5>(pairs_of(&x[1][step * TILE..]), 2 * stride);
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
    }
    tiles.store::<0>(upper, vector);
    tiles.store::<1>(upper, vector + 1);
    if TWO {
        tiles.store::<2>(lower, vector);
        tiles.store::<3>(lower, vector + 1);
    }
}

/// Words as the pairs that they are.
#[inline(always)]
pub fn pairs_of(words: &[u32]) -> &[bf16] {
    // SAFETY: a u32 is two bf16, any bits are one.
    unsafe { words.align_to::<bf16>() }.1
}

/// One tile of rows by all four of outputs, which reads the weights in the order in which they lie:
/// with few rows that is all it is about.
#[inline(always)]
fn strip<T: Tiles>(
    tiles: &mut T,
    x: &[u32],
    stride: usize,
    weight: &Matrix,
    panel: usize,
    sums: &mut [Row],
) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
    for from in (0..weight.pairs()).step_by(BLOCK_PAIRS) {
        let block = weight.block(panel, from);
        let mut vectors = [block; VECTORS];
        for (vector, weights) in vectors.iter_mut().zip(block.chunks(block.len() / VECTORS)) {
            *vector = weights;
        }
        for step in (0..vectors[0].len()).step_by(TILE) {
            let weights = vectors.map(|weights| &weights[step..weights.len().min(step + TILE)]);
            tiles.load::<4>(pairs_of(&x[from + step..]), 2 * stride);
            load_weights::<T, 6>(tiles, weights[0]);
            load_weights::<T, 7>(tiles, weights[1]);
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 7>();
            load_weights::<T, 6>(tiles, weights[2]);
            load_weights::<T, 7>(tiles, weights[3]);
            tiles.dot::<2, 4, 6>();
            tiles.dot::<3, 4, 7>();
        }
    }
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

    fn store<const T: usize>(&mut self, to: &mut [Row], vector: usize) {
        for (row, words) in to.iter_mut().zip(&self.words[T]) {
            for (sum, word) in row.0[vector * LANES..].iter_mut().zip(words) {
                *sum = f32::from_bits(*word);
            }
        }
    }

    fn resume<const T: usize>(&mut self, from: &[Row], vector: usize) {
        for (words, row) in self.words[T].iter_mut().zip(from) {
            for (word, sum) in words.iter_mut().zip(&row.0[vector * LANES..]) {
                *word = sum.to_bits();
            }
        }
    }

    fn prefetch(_address: *const bf16) {}
}
