//! Weights laid out for the matmul kernels.

use std::sync::Arc;

use super::buffer::Buffer;
use crate::backend::Memory;
use crate::error::Result;
use crate::tensor::{HostMatrix, bf16};

/// Outputs that a panel holds side by side: four vectors of sixteen.
pub const PANEL: usize = 64;

/// A weight matrix `[outputs, inputs]` as `[panels, pairs, PANEL, 2]` of bf16: for each pair of
/// inputs the weights of 64 outputs, so that one pass streams through memory, and every vector
/// of it is what `vdpbf16ps` multiplies. Missing outputs and an odd last input are zeros.
pub struct Matrix {
    /// Outputs: rows of the original.
    pub outputs: usize,
    /// Inputs: columns of the original.
    pub inputs: usize,
    data: Buffer<bf16>,
}

impl Matrix {
    /// Packs `matrix` into memory taken from `memory`.
    pub fn new(memory: &Arc<Memory>, matrix: &HostMatrix<'_>) -> Result<Self> {
        let (outputs, inputs) = (matrix.rows, matrix.cols);
        let pairs = inputs.div_ceil(2);
        let mut data = Buffer::new(memory, outputs.div_ceil(PANEL) * pairs * PANEL * 2)?;
        data.prefer_huge_pages();
        for output in 0..outputs {
            let start = (output / PANEL) * pairs * PANEL * 2 + (output % PANEL) * 2;
            for (input, &weight) in matrix.row(output).iter().enumerate() {
                data[start + (input / 2) * PANEL * 2 + input % 2] = weight;
            }
        }
        Ok(Self { outputs, inputs, data })
    }

    /// Pairs of inputs, the last one padded if need be.
    pub fn pairs(&self) -> usize {
        self.inputs.div_ceil(2)
    }

    /// How many panels there are.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// One panel, `[pairs, PANEL, 2]`.
    pub fn panel(&self, panel: usize) -> &[bf16] {
        let len = self.pairs() * PANEL * 2;
        &self.data[panel * len..][..len]
    }

    /// The weights of one output, `[inputs]`: a table's row.
    pub fn row(&self, output: usize) -> impl Iterator<Item = bf16> + '_ {
        let panel = self.panel(output / PANEL);
        let lane = (output % PANEL) * 2;
        (0..self.inputs).map(move |input| panel[(input / 2) * PANEL * 2 + lane + input % 2])
    }
}
