//! Weights laid out for the matmul kernels.

use std::sync::Arc;

use super::buffer::{Buffer, Slabs};
use super::math::widen;
use super::simd::LANES;
use crate::backend::Memory;
use crate::error::Result;
use crate::tensor::{HostMatrix, bf16};

/// Outputs that a panel holds side by side.
pub const PANEL: usize = VECTORS * LANES;

/// Vectors of outputs in a panel.
pub const VECTORS: usize = 4;

/// Pairs of inputs of a block: 32 KiB of weights, which stay in the first-level cache while all rows
/// run through them on tiles, in the second-level one in lanes.
pub const BLOCK_PAIRS: usize = 128;

/// Sixteen outputs' weights for one pair of inputs.
pub type WeightPairs = [bf16; 2 * LANES];

/// A weight matrix `[outputs, inputs]` as `[panels, blocks, VECTORS, pairs of the block, LANES, 2]`
/// of bf16: for each pair of inputs the weights of 16 outputs side by side, which is what
/// `vdpbf16ps` multiplies, so that one pass streams through memory. The last block has the pairs
/// that are left; missing outputs and inputs are zeros.
pub struct Matrix {
    /// Outputs: rows of the original.
    pub outputs: usize,
    /// Inputs: columns of the original.
    pub inputs: usize,
    /// Pairs of inputs, the last ones padded if need be.
    pub pairs: usize,
    data: Buffer<bf16>,
}

/// Pairs of inputs, filled up to whole steps.
fn padded_pairs(step_pairs: usize, inputs: usize) -> usize {
    inputs.div_ceil(2).next_multiple_of(step_pairs)
}

/// Weights of whole panels.
fn packed_len(outputs: usize, pairs: usize) -> usize {
    outputs.div_ceil(PANEL) * pairs * PANEL * 2
}

impl Matrix {
    /// Bytes that one with so many outputs and inputs takes.
    pub fn bytes(step_pairs: usize, outputs: usize, inputs: usize) -> usize {
        packed_len(outputs, padded_pairs(step_pairs, inputs)) * size_of::<bf16>()
    }

    /// Packs `matrix`, padded to a multiple of `step_pairs` pairs of inputs, into memory of `slabs` that is
    /// taken from `memory`.
    pub fn new(
        step_pairs: usize,
        slabs: &Slabs,
        memory: &Arc<Memory>,
        matrix: &HostMatrix<'_>,
    ) -> Result<Self> {
        let (outputs, inputs) = (matrix.rows, matrix.cols);
        let pairs = padded_pairs(step_pairs, inputs);
        let len = packed_len(outputs, pairs);
        let mut packed = Self { outputs, inputs, pairs, data: slabs.buffer(memory, len)? };
        for output in 0..outputs {
            let weights = matrix.row(output).chunks(2 * BLOCK_PAIRS);
            for (block, weights) in weights.enumerate() {
                let places = packed.places(output, block);
                for (place, weights) in places.zip(weights.chunks(2)) {
                    packed.data[place..][..weights.len()].copy_from_slice(weights);
                }
            }
        }
        Ok(packed)
    }

    /// How many panels there are.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// The blocks of a panel, each with its first pair of inputs and its weights, `[VECTORS, pairs]`.
    pub fn blocks(&self, panel: usize) -> impl Iterator<Item = (usize, &[WeightPairs])> {
        let len = self.pairs * PANEL * 2;
        let weights = self.data[panel * len..][..len].as_chunks().0;
        (0..).step_by(BLOCK_PAIRS).zip(weights.chunks(BLOCK_PAIRS * VECTORS))
    }

    /// Where the pairs of one output in a block stand.
    fn places(&self, output: usize, block: usize) -> impl Iterator<Item = usize> + use<> {
        let from = block * BLOCK_PAIRS;
        let count = BLOCK_PAIRS.min(self.pairs - from);
        let (panel, vector, lane) = (output / PANEL, output % PANEL / LANES, output % LANES);
        let start = (panel * self.pairs + from) * PANEL * 2 + vector * count * 2 * LANES;
        (0..count).map(move |pair| start + (pair * LANES + lane) * 2)
    }

    /// Hands each weight of one output, a table's row, to `put` with its place in `out: [inputs]`.
    #[inline]
    pub fn row(&self, output: usize, out: &mut [f32], put: impl Fn(&mut f32, f32)) {
        assert!(output < self.outputs, "row {output} of {}", self.outputs);
        for (block, out) in out.chunks_mut(2 * BLOCK_PAIRS).enumerate() {
            for (place, out) in self.places(output, block).zip(out.chunks_mut(2)) {
                for (out, &weight) in out.iter_mut().zip(&self.data[place..place + 2]) {
                    put(out, widen(weight));
                }
            }
        }
    }
}
