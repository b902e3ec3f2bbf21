//! Activations times weights on tiles: 16 rows by 16 outputs, 32 inputs an instruction.
//!
//! The kernel is generic over [`Tiles`], whose instructions are AMX's in amx.rs and plain loops
//! here, so that it is proved on machines without them. A sum runs over steps of 16 pairs of inputs
//! in order, in one tile: a row's result depends on nothing but itself.

use std::ops::Range;
use std::slice;

use super::matmul::{Row, Sums, Words};
use super::matrix::{BLOCK_PAIRS, Matrix, VECTORS, WeightPairs};
use super::simd::LANES;
use crate::tensor::bf16;

/// Rows of a tile, and pairs of inputs of a step. A tile's row has 64 bytes: 16 sums, or 16 pairs.
pub const TILE: usize = 16;

// A step takes 16 pairs of each vector of a panel.
const _: () = assert!(TILE == LANES);

/// Eight tiles of 16 rows of 64 bytes, by number.
pub trait Tiles {
    /// Tiles that are ready, with anything in them.
    fn new() -> Self;
    /// Sets a tile to zeros.
    fn zero<const T: usize>(&mut self);
    /// Loads a tile whose rows begin `stride` numbers apart.
    ///
    /// # Safety
    /// From `from` on there must be `(TILE - 1) * stride + 2 * LANES` numbers.
    unsafe fn load<const T: usize>(&mut self, from: *const bf16, stride: usize);
    /// [`load`](Self::load), checked.
    #[inline(always)]
    fn load_rows<const T: usize>(&mut self, from: &[bf16], stride: usize) {
        assert!(from.len() >= (TILE - 1) * stride + 2 * LANES, "a tile of 16 rows");
        // SAFETY: they are there.
        unsafe { self.load::<T>(from.as_ptr(), stride) };
    }
    /// `C[row][output] += Σ A[row][pair] · B[pair][output]` over 16 pairs of bf16, sums in f32.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
    /// Stores a tile of sums into one vector of 16 rows of a panel.
    fn store<const T: usize>(&mut self, to: &mut [Row], vector: usize);
    /// Loads a tile of sums that was stored so.
    fn resume<const T: usize>(&mut self, from: &[Row], vector: usize);
    /// Asks for the cache line at `address`, which need not be ours.
    fn prefetch(address: *const bf16);
    /// Loads something of a line, so that it comes into the nearest cache. The rows of a tile wait
    /// for one another; such loads do not, and memory gives a tenth more.
    fn touch(line: &WeightPairs);
}

/// Rows for which the weights come too slowly to be asked for while others are used: they are read
/// where they are needed, but line by line (see [`Tiles::touch`]).
const FEW: usize = 4 * TILE;

/// The sums of `rows`, which begin with a whole tile, and one panel; `x: [rows, stride]` with
/// whole tiles of rows, zeros where there is nothing (see [`words`](super::matmul::words)). A tile of
/// rows at a time is handed to `each` as soon as its sums are there, while they are near.
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
    let (pairs, stride) = (weight.pairs, 2 * weight.pairs);
    let x = |row: usize, from: usize| pairs_of(x.from(row * pairs + from));
    // All of it is written.
    let padded = rows.len().next_multiple_of(TILE);
    sums.resize(sums.len().max(padded), Row::ZERO);
    let sums = &mut sums[..padded];
    let mut done = |row: usize, sums: &[Row]| {
        let rows = row..rows.end.min(row + TILE);
        let count = rows.len();
        each(rows, &sums[..count]);
    };
    if padded <= FEW {
        for (strip, sums) in sums.chunks_exact_mut(TILE).enumerate() {
            let row = rows.start + strip * TILE;
            zero(&mut tiles);
            for (from, weights) in weight.blocks(panel) {
                add(&mut tiles, x(row, from), stride, weights, |step| touch::<T>(step, weights));
            }
            store(&mut tiles, sums);
            done(row, sums);
        }
        return;
    }
    for (from, weights) in weight.blocks(panel) {
        // They stay in the first-level cache while all rows run through them; those that come next
        // are asked for meanwhile.
        let mut ahead = Ahead::new(weights, padded / TILE);
        for (strip, sums) in sums.chunks_exact_mut(TILE).enumerate() {
            let row = rows.start + strip * TILE;
            if from == 0 {
                zero(&mut tiles);
            } else {
                resume(&mut tiles, sums);
            }
            add(&mut tiles, x(row, from), stride, weights, |_| ahead.step::<T>());
            store(&mut tiles, sums);
            if from + BLOCK_PAIRS >= pairs {
                done(row, sums);
            }
        }
    }
}

/// Touches the weights of a step, two vectors' at a time, which lie in different pages: memory gives
/// the most when it is read at several places.
#[inline(always)]
fn touch<T: Tiles>(step: usize, weights: &[WeightPairs]) {
    let pairs = weights.len() / VECTORS;
    for two in weights.chunks_exact(2 * pairs) {
        let (left, right) = two.split_at(pairs);
        let lines = left[step * TILE..][..TILE].iter().zip(&right[step * TILE..][..TILE]);
        for (left, right) in lines {
            T::touch(left);
            T::touch(right);
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
    /// As many as `weights`, in as many pieces as `strips` take steps.
    #[inline(always)]
    fn new(weights: &[WeightPairs], strips: usize) -> Self {
        let steps = strips * weights.len() / (VECTORS * TILE);
        let next = weights.as_ptr_range().end.cast();
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

/// Adds a block to the sums of one tile of rows in tiles 0 to 3. `x`: the rows from the block's first
/// pair on, `stride` numbers apart; `weights: [VECTORS, pairs]`; `begin` is told of each step.
#[inline(always)]
fn add<T: Tiles>(
    tiles: &mut T,
    x: &[bf16],
    stride: usize,
    weights: &[WeightPairs],
    mut begin: impl FnMut(usize),
) {
    let pairs = weights.len() / VECTORS;
    let steps = pairs / TILE;
    assert!(x.len() >= (TILE - 1) * stride + steps * 2 * TILE, "a tile of 16 rows");
    let (x, weights) = (x.as_ptr(), weights.as_ptr().cast::<bf16>());
    for step in 0..steps {
        begin(step);
        // SAFETY: the rows have so many steps, see above, and so have the weights.
        unsafe {
            // What is loaded is multiplied at once: the next load runs beside it.
            tiles.load::<4>(x.add(step * 2 * TILE), stride);
            let tile = |vector: usize| weights.add((vector * pairs + step * TILE) * 2 * LANES);
            tiles.load::<5>(tile(0), 2 * LANES);
            tiles.dot::<0, 4, 5>();
            tiles.load::<6>(tile(1), 2 * LANES);
            tiles.dot::<1, 4, 6>();
            tiles.load::<7>(tile(2), 2 * LANES);
            tiles.dot::<2, 4, 7>();
            tiles.load::<5>(tile(3), 2 * LANES);
            tiles.dot::<3, 4, 5>();
        }
    }
}

#[inline(always)]
fn zero(tiles: &mut impl Tiles) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
}

#[inline(always)]
fn resume(tiles: &mut impl Tiles, sums: &[Row]) {
    tiles.resume::<0>(sums, 0);
    tiles.resume::<1>(sums, 1);
    tiles.resume::<2>(sums, 2);
    tiles.resume::<3>(sums, 3);
}

#[inline(always)]
fn store(tiles: &mut impl Tiles, sums: &mut [Row]) {
    tiles.store::<0>(sums, 0);
    tiles.store::<1>(sums, 1);
    tiles.store::<2>(sums, 2);
    tiles.store::<3>(sums, 3);
}

/// Words as the pairs that they are.
#[inline(always)]
pub fn pairs_of(words: &[u32]) -> &[bf16] {
    // SAFETY: a u32 is two bf16, any bits are one.
    unsafe { words.align_to::<bf16>() }.1
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

    unsafe fn load<const T: usize>(&mut self, from: *const bf16, stride: usize) {
        for (row, words) in self.words[T].iter_mut().enumerate() {
            // SAFETY: the caller says that they are there.
            let numbers = unsafe { slice::from_raw_parts(from.add(row * stride), 2 * LANES) };
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
    fn touch(_line: &WeightPairs) {}
}
