//! Activations times weights, for any number of rows.
//!
//! The sum of one row and one output runs over blocks of pairs of inputs in order, in each over the
//! steps that a pair takes, in one accumulator, whatever the number of rows and threads: so a row's
//! result never depends on its neighbours.

use std::cell::Cell;
use std::mem;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::buffer::LINE;
use super::isa::vectorized;
use super::matrix::{Matrix, PANEL, VECTORS, WeightPairs};
use super::simd::{LANES, Lanes};
use super::tiles::{self, PortableTiles, TILE};
use super::{CpuBackend, Isa};
use crate::tensor::bf16;

/// Rows that run through one panel before the next panel is read: tiles do it so fast that
/// reading the panel would take longer than fewer rows. Their inputs stay in a second-level cache
/// of 2 MiB while all panels go past them.
pub fn block_rows(isa: Isa, inputs: usize) -> usize {
    match isa {
        // A block begins with a whole tile.
        Isa::PortableTiles | Isa::Amx if inputs <= 1024 => 32 * TILE,
        Isa::PortableTiles | Isa::Amx => 16 * TILE,
        _ => 96,
    }
}

/// Multiply-adds below which waking another thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 20;

/// The sums of up to [`block_rows`] rows and one panel of outputs, `[rows, PANEL]`.
pub type Sums = Vec<Row>;

/// One row's sums of a panel: whole cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Row(pub [f32; PANEL]);

impl Row {
    pub const ZERO: Self = Self([0.0; PANEL]);

    /// One vector of them.
    #[inline(always)]
    pub fn vector(&self, vector: usize) -> &[f32; LANES] {
        &self.0.as_chunks().0[vector]
    }

    /// One vector of them.
    #[inline(always)]
    pub fn vector_mut(&mut self, vector: usize) -> &mut [f32; LANES] {
        &mut self.0.as_chunks_mut().0[vector]
    }
}

/// The sums of some rows and one panel.
#[derive(Clone)]
pub struct Block<'a> {
    pub rows: Range<usize>,
    /// The panel's first output.
    pub output: usize,
    /// Its outputs: the sums behind them mean nothing.
    pub outputs: usize,
    /// `[rows]`
    pub sums: &'a [Row],
}

thread_local! {
    /// Memory for [`words`], kept from op to op: new memory would have to be zeroed first.
    static SPARE: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// Memory for [`panel_sums`], likewise: from the system for each panel it would cost more than
    /// the sums.
    static SUMS: Cell<Sums> = const { Cell::new(Vec::new()) };
    /// And for the first of two matrices' sums.
    static FIRSTS: Cell<Sums> = const { Cell::new(Vec::new()) };
}

/// See [`words`].
pub struct Words<'a> {
    /// Rows that already stand as they should, from the first one on.
    borrowed: &'a [u32],
    /// The rows behind them, from the cache line at `start` on.
    owned: Vec<u32>,
    start: usize,
}

impl Words<'_> {
    /// The words of a row, or of a tile of rows, from word `from` on, and what stands behind them.
    #[inline(always)]
    pub fn from(&self, from: usize) -> &[u32] {
        match from.checked_sub(self.borrowed.len()) {
            None => &self.borrowed[from..],
            Some(from) => &self.owned[self.start + from..],
        }
    }
}

impl Drop for Words<'_> {
    fn drop(&mut self) {
        if !self.owned.is_empty() {
            SPARE.set(mem::take(&mut self.owned));
        }
    }
}

/// Rows, and pairs of inputs, that are multiplied at a time: what is not so many is filled up with zeros.
pub fn step(isa: Isa) -> usize {
    match isa {
        Isa::PortableTiles | Isa::Amx => TILE,
        _ => 1,
    }
}

/// `x: [rows, inputs]` in the words that an instruction set multiplies with: pairs of bf16, or two
/// f32, `[rows, Lanes::STEPS, pairs]`; an odd last input gets a zero beside it. Pairs and rows are filled up
/// with zeros to whole [`step`]s. What is so already, all rows or all whole tiles of them, stays where it is.
pub fn words<'a>(cpu: &CpuBackend, rows: usize, inputs: usize, x: &'a [bf16]) -> Words<'a> {
    let isa = cpu.isa;
    let x = &x[..rows * inputs];
    let tile = step(isa);
    let steps = if tile == 1 { steps(isa) } else { 1 };
    let pairs = inputs.div_ceil(2).next_multiple_of(tile);
    let mut borrowed: &[u32] = &[];
    if steps == 1
        && 2 * pairs == inputs
        && cfg!(target_endian = "little")
        // SAFETY: any two bf16 are a valid u32; `align_to` takes care of alignment.
        && let ([], words, []) = unsafe { x.align_to::<u32>() }
    {
        borrowed = &words[..rows / tile * tile * pairs];
    }
    let width = pairs * steps;
    let x = &x[borrowed.len() / width * inputs..];
    if x.is_empty() {
        return Words { borrowed, owned: Vec::new(), start: 0 };
    }
    let rows = x.len() / inputs;
    let padded_rows = rows.next_multiple_of(tile);
    let mut owned = SPARE.take();
    // A tile's rows are as long as a cache line, and slow where they straddle two.
    owned.resize(owned.len().max(padded_rows * width + LINE / size_of::<u32>()), 0);
    let start = owned.as_ptr().align_offset(LINE);
    let (used, padding) = owned[start..][..padded_rows * width].split_at_mut(rows * width);
    padding.fill(0);
    cpu.by_row(rows, (x, inputs), (used, width), |x, out| row_words(isa, x, steps, out));
    Words { borrowed, owned, start }
}

vectorized! {
    /// [`Lanes::STEPS`]
    fn steps() -> usize = steps_of::<S>;
    /// One row's [`words`].
    fn row_words(x: &[bf16], steps: usize, out: &mut [u32]) = words_of;
    /// The sums of `rows`, at most [`block_rows`] of them, and one panel, in lanes.
    fn lane_sums(
        rows: Range<usize>,
        x: &Words<'_>,
        weight: &Matrix,
        panel: usize,
        sums: &mut Sums,
    ) = block::<S>;
}

#[inline(always)]
fn steps_of<S: Lanes>() -> usize {
    S::STEPS
}

#[inline(always)]
fn words_of(x: &[bf16], steps: usize, out: &mut [u32]) {
    let pair = |low: bf16, high: bf16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    let (pairs, last) = x.as_chunks::<2>();
    let count = pairs.len();
    let last = last.first().map(|&last| pair(last, bf16::ZERO));
    if steps == 1 {
        for (out, &[low, high]) in out.iter_mut().zip(pairs) {
            *out = pair(low, high);
        }
        out[count..].fill(0);
        if let Some(last) = last {
            out[count] = last;
        }
    } else {
        let (even, odd) = out.split_at_mut(out.len() / 2);
        for ((even, odd), &[low, high]) in even.iter_mut().zip(odd.iter_mut()).zip(pairs) {
            let pair = pair(low, high);
            (*even, *odd) = (pair << 16, pair & 0xffff_0000);
        }
        if let Some(last) = last {
            (even[count], odd[count]) = (last << 16, 0);
        }
    }
}

/// Computes all sums and hands them to `write`, from several threads, each once.
pub fn matmul(
    cpu: &CpuBackend,
    rows: usize,
    x: &[bf16],
    weight: &Matrix,
    write: impl Fn(Block<'_>) + Sync,
) {
    let x = words(cpu, rows, weight.inputs, x);
    each_panel(cpu, rows, weight, 1, |rows, panel| {
        panel_sums(cpu.isa, rows, &x, weight, panel, &write);
    });
}

/// Computes all sums of two matrices of one shape, and hands those of the second to `write` with the first
/// one's for the same rows and outputs.
pub fn matmul_pair(
    cpu: &CpuBackend,
    rows: usize,
    x: &[bf16],
    [first, second]: [&Matrix; 2],
    write: impl Fn(&[Row], Block<'_>) + Sync,
) {
    let x = words(cpu, rows, first.inputs, x);
    each_panel(cpu, rows, first, 2, |rows, panel| {
        let mut firsts = FIRSTS.take();
        firsts.clear();
        let keep = |block: Block<'_>| firsts.extend_from_slice(block.sums);
        panel_sums(cpu.isa, rows.clone(), &x, first, panel, keep);
        panel_sums(cpu.isa, rows.clone(), &x, second, panel, |block| {
            write(&firsts[block.rows.start - rows.start..], block);
        });
        FIRSTS.set(firsts);
    });
}

/// `each(rows, panel)` for all panels of `matrices` of this shape, at most [`block_rows`] rows at a time.
fn each_panel(
    cpu: &CpuBackend,
    rows: usize,
    weight: &Matrix,
    matrices: usize,
    each: impl Fn(Range<usize>, usize) + Sync,
) {
    let block_rows = block_rows(cpu.isa, weight.inputs);
    let (blocks, panels) = (rows.div_ceil(block_rows), weight.panels());
    let worth_while = rows * weight.inputs * weight.outputs * matrices >= WORTH_A_THREAD;
    cpu.team.each(blocks * panels, worth_while, |index| {
        let first = index / panels * block_rows;
        each(first..rows.min(first + block_rows), index % panels);
    });
}

/// Hands `rows`, at most [`block_rows`] of them, to `each` with their sums of one panel, in order,
/// some at a time.
pub fn panel_sums(
    isa: Isa,
    rows: Range<usize>,
    x: &Words<'_>,
    weight: &Matrix,
    panel: usize,
    mut each: impl FnMut(Block<'_>),
) {
    let output = panel * PANEL;
    let outputs = PANEL.min(weight.outputs - output);
    let mut memory = SUMS.take();
    let sums = &mut memory;
    let each = |rows: Range<usize>, sums: &[Row]| each(Block { rows, output, outputs, sums });
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => tiles::block::<Amx>(rows, x, weight, panel, sums, each),
        Isa::PortableTiles => tiles::block::<PortableTiles>(rows, x, weight, panel, sums, each),
        _ => {
            let mut each = each;
            lane_sums(isa, rows.clone(), x, weight, panel, sums);
            each(rows, sums);
        }
    }
    SUMS.set(memory);
}

#[inline(always)]
fn block<S: Lanes>(
    rows: Range<usize>,
    x: &Words<'_>,
    weight: &Matrix,
    panel: usize,
    sums: &mut Sums,
) {
    let pairs = weight.pairs;
    let width = pairs * S::STEPS;
    let x = &x.from(rows.start * width)[..rows.len() * width];
    sums.clear();
    sums.resize(rows.len(), Row::ZERO);
    for (from, weights) in weight.blocks(panel) {
        for (tile, sums) in sums.chunks_mut(S::ROWS).enumerate() {
            let x = &x[tile * S::ROWS * width + from..];
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

/// One tile, as many vectors of outputs at a time as there are registers for.
#[inline(always)]
fn tile_of<S: Lanes, const ROWS: usize>(
    x: &[u32],
    pairs: usize,
    weights: &[WeightPairs],
    sums: &mut [Row],
) {
    if ROWS * VECTORS <= S::SUMS {
        pass::<S, ROWS, VECTORS>(x, pairs, weights, 0, sums);
    } else if ROWS * 2 <= S::SUMS {
        for vector in (0..VECTORS).step_by(2) {
            pass::<S, ROWS, 2>(x, pairs, weights, vector, sums);
        }
    } else {
        for vector in 0..VECTORS {
            pass::<S, ROWS, 1>(x, pairs, weights, vector, sums);
        }
    }
}

/// Adds to the sums of `ROWS` rows, `x: [ROWS, STEPS, pairs]` from some pair on, and `COUNT` vectors
/// of outputs from `vector` on; `weights: [VECTORS, pairs of the block]`.
#[inline(always)]
fn pass<S: Lanes, const ROWS: usize, const COUNT: usize>(
    x: &[u32],
    pairs: usize,
    weights: &[WeightPairs],
    vector: usize,
    sums: &mut [Row],
) {
    assert_eq!(sums.len(), ROWS);
    let count = weights.len() / VECTORS;
    let mut vectors = [weights; COUNT];
    for (at, vector_weights) in vectors.iter_mut().enumerate() {
        *vector_weights = &weights[(vector + at) * count..][..count];
    }
    let mut acc = [[S::splat(0.0); COUNT]; ROWS];
    for (acc, sums) in acc.iter_mut().zip(&*sums) {
        for (acc, sum) in acc.iter_mut().zip(&sums.0.as_chunks::<LANES>().0[vector..]) {
            *acc = S::load(sum);
        }
    }
    // Steps outside: with all of a pair's weights at hand the sums would not fit in the registers.
    for step in 0..S::STEPS {
        let mut rows = [x; ROWS];
        for (row, words) in rows.iter_mut().enumerate() {
            *words = &x[(row * S::STEPS + step) * pairs..][..count];
        }
        for pair in 0..count {
            let mut w = [S::weights(&vectors[0][pair], step); COUNT];
            for at in 1..COUNT {
                w[at] = S::weights(&vectors[at][pair], step);
            }
            if step == 0 {
                // The next block is as far away as this one is long: it is there when it is wanted.
                for vector in &vectors {
                    S::prefetch(vector.as_ptr().wrapping_add(pair + weights.len()).cast());
                }
            }
            for row in 0..ROWS {
                let input = S::input(rows[row][pair]);
                for at in 0..COUNT {
                    acc[row][at] = acc[row][at].step(w[at], input);
                }
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums) {
        for (acc, sum) in acc.into_iter().zip(&mut sums.0.as_chunks_mut::<LANES>().0[vector..]) {
            acc.store(sum);
        }
    }
}
