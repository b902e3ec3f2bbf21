//! Attention's scores on tiles: queries times the keys of a page, and what softmax makes of them.

use std::ops::Range;

use super::matmul::Row;
use super::matrix::PANEL;
use super::simd::{self, LANES, Lanes};
use super::tiles::{TILE, Tiles, pairs_of};
use crate::backend::PAGE_LEN;
use crate::tensor::bf16;

// A page's keys are the rows of a tile, the queries its columns.
const _: () = assert!(PAGE_LEN == TILE && LANES == TILE);

/// Channels that a tile holds of a key.
const CHANNELS: usize = 2 * TILE;

/// The most queries that a task may have.
pub const MOST_QUERIES: usize = PANEL;

/// Whether keys of `dim` channels are whole tiles.
pub fn fit(dim: usize) -> bool {
    dim.is_multiple_of(CHANNELS)
}

/// Multiplies the queries of a task with the keys of one page after the other.
pub trait Products {
    /// Multiplies `queries`, some of the task's, with `keys: [PAGE_LEN, dim]`.
    fn multiply(&mut self, queries: Range<usize>, keys: &[bf16], products: &mut PageProducts);
}

/// A number of each slot of a page for the queries of a task, `[PAGE_LEN, queries]`.
pub type PageProducts = [Row; PAGE_LEN];

/// Softmax of the queries of a task over the pages so far. A query's numbers are one lane of each
/// vector, and no lane depends on another.
pub struct Softmax {
    /// The largest score so far.
    max: Row,
    /// Σ e^(score − max), one sum per slot of a page.
    totals: PageProducts,
    /// Of the page at hand: e^(score − max), 0 for slots that a query does not see.
    pub weights: PageProducts,
    /// What the weights of the pages before are to be multiplied with: the maximum may have risen.
    pub rescale: Row,
}

impl Default for Softmax {
    fn default() -> Self {
        let none = [Row::ZERO; PAGE_LEN];
        let max = Row([f32::NEG_INFINITY; PANEL]);
        Self { max, totals: none, weights: none, rescale: Row::ZERO }
    }
}

impl Softmax {
    /// Makes weights of the products in `weights`, for `queries`, each of which sees `slots` of the
    /// page.
    #[inline(always)]
    pub fn weigh<S: Lanes>(
        &mut self,
        queries: Range<usize>,
        scale: f32,
        slots: impl Fn(usize) -> Range<usize>,
    ) {
        for tile in queries.start / TILE..queries.end.div_ceil(TILE) {
            let mut seen = Seen { first: [0; LANES], end: [0; LANES] };
            for query in queries.start.max(tile * TILE)..queries.end.min((tile + 1) * TILE) {
                let slots = slots(query);
                seen.first[query % TILE] = slots.start as u32;
                seen.end[query % TILE] = slots.end as u32;
            }
            self.weigh_tile::<S>(tile, scale, &seen);
        }
    }

    #[inline(always)]
    fn weigh_tile<S: Lanes>(&mut self, tile: usize, scale: f32, seen: &Seen) {
        let all = seen.first == [0; LANES] && seen.end == [PAGE_LEN as u32; LANES];
        let old = *self.max.vector(tile);
        let mut max = S::load(&old);
        for (slot, row) in (0..).zip(&mut self.weights) {
            let scores = row.vector_mut(tile);
            S::load(scores).mul(S::splat(scale)).store(scores);
            if !all {
                seen.hide(slot, scores, f32::NEG_INFINITY);
            }
            max = S::load(scores).max(max);
        }
        max.store(self.max.vector_mut(tile));
        let rescale = self.rescale.vector_mut(tile);
        simd::exp(S::load(&old).sub(max)).store(rescale);
        // Exactly so, also for who has seen nothing yet.
        for ((rescale, old), max) in rescale.iter_mut().zip(&old).zip(self.max.vector(tile)) {
            *rescale = if old == max { 1.0 } else { *rescale };
        }
        let rescale = S::load(rescale);
        for ((slot, row), total) in (0..).zip(&mut self.weights).zip(&mut self.totals) {
            let weights = row.vector_mut(tile);
            simd::exp(S::load(weights).sub(max)).store(weights);
            if !all {
                seen.hide(slot, weights, 0.0);
            }
            let total = total.vector_mut(tile);
            S::load(total).mul_add(rescale, S::load(weights)).store(total);
        }
    }

    /// What a query's weighted values are to be divided by.
    #[inline(always)]
    pub fn total<S: Lanes>(&self, query: usize) -> f32 {
        S::load(&self.totals.each_ref().map(|totals| totals.0[query])).sum()
    }
}

/// The slots of a page that each query of a tile sees.
struct Seen {
    first: [u32; LANES],
    end: [u32; LANES],
}

impl Seen {
    /// Replaces the numbers of those that do not see `slot`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Zipped iterators are not vectorised here.
    fn hide(&self, slot: u32, numbers: &mut [f32; LANES], by: f32) {
        for lane in 0..LANES {
            let sees = (self.first[lane] <= slot) & (slot < self.end[lane]);
            numbers[lane] = if sees { numbers[lane] } else { by };
        }
    }
}

/// [`Products`] on tiles: keys times transposed queries, so that the keys can stay as they are.
pub struct OnTiles<T> {
    tiles: T,
    dim: usize,
    /// `[tiles of queries, tiles of channels, pairs, queries of a tile]`
    words: Vec<u32>,
}

impl<T: Tiles> OnTiles<T> {
    /// At most [`MOST_QUERIES`] of `dim` channels, which [`fit`].
    pub fn new<'a>(dim: usize, queries: impl ExactSizeIterator<Item = &'a [bf16]>) -> Self {
        assert!(fit(dim) && queries.len() <= MOST_QUERIES, "{} queries of {dim}", queries.len());
        let width = dim / 2 * TILE;
        let mut words = vec![0; queries.len().div_ceil(TILE) * width];
        for (index, query) in queries.enumerate() {
            let words = &mut words[index / TILE * width + index % TILE..];
            for (place, pair) in words.iter_mut().step_by(TILE).zip(query.as_chunks::<2>().0) {
                *place = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
            }
        }
        Self { tiles: T::new(), dim, words }
    }
}

impl<T: Tiles> Products for OnTiles<T> {
    #[inline(always)]
    fn multiply(&mut self, queries: Range<usize>, keys: &[bf16], products: &mut PageProducts) {
        let width = self.dim / 2 * TILE;
        for tile in queries.start / TILE..queries.end.div_ceil(TILE) {
            self.tiles.zero::<0>();
            let words = self.words[tile * width..][..width].chunks_exact(TILE * TILE);
            for (step, words) in words.enumerate() {
                self.tiles.load_rows::<4>(&keys[step * CHANNELS..], self.dim);
                self.tiles.load_rows::<6>(pairs_of(words), 2 * TILE);
                self.tiles.dot::<0, 4, 6>();
            }
            self.tiles.store::<0>(products, tile);
        }
    }
}
