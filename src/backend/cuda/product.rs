//! Launches of kernels/product.cuh: x · weightᵀ for few rows, for many, and for log-probabilities.

use std::fmt::Debug;

use super::buffer::{Buffer, Matrix};
use super::device::Device;
use super::params::{LogprobsParams, ProductParams};
use super::{CudaBackend, THREADS, WORKSPACE_LEN, count};
use crate::backend::Entries;
use crate::error::Result;
use crate::tensor::bf16;

// As in kernels/product.cuh.
const SLICES: usize = 4;
const FEW_OUTPUTS: usize = 16;
const TILE: usize = 128;
const STAGES: usize = 4;
const DEPTH: usize = 32;
const MANY_THREADS: u32 = 256;

/// Rows of a block of the kernels for few rows.
const FEW_ROWS: [usize; 4] = [8, 16, 32, 64];

/// Large tiles are for products that give one processor in so many a block.
const CROWDED: usize = 4;

/// An op's kernels for up to 8, 16, 32 and 64 rows, and for more.
pub type Kernels = [&'static str; 5];
pub const MATMUL: Kernels = ["matmul_8", "matmul_16", "matmul_32", "matmul_64", "matmul_many"];
pub const MATMUL_ADD: Kernels =
    ["matmul_add_8", "matmul_add_16", "matmul_add_32", "matmul_add_64", "matmul_add_many"];
pub const LOGITS: Kernels = ["logits_8", "logits_16", "logits_32", "logits_64", "logits_many"];

/// The operands of one product.
pub struct Product<'a, D: Device> {
    rows: usize,
    x: &'a Buffer<D, bf16>,
    weight: &'a Matrix<D>,
}

impl<'a, D: Device> Product<'a, D> {
    pub fn new(rows: usize, x: &'a Buffer<D, bf16>, weight: &'a Matrix<D>) -> Self {
        assert!(x.len >= rows * weight.inputs, "x: [rows, {}]", weight.inputs);
        Self { rows, x, weight }
    }

    pub fn params(&self) -> ProductParams {
        ProductParams {
            x: self.x.as_ptr(),
            weight: self.weight.data.as_ptr(),
            rows: count(self.rows),
            inputs: count(self.weight.inputs),
            outputs: count(self.weight.outputs),
        }
    }

    /// Launches the kernel for this many rows. All of them add in the same order, so the choice is
    /// free: those for few rows also take more of them, 64 a block, where the large tiles of the last
    /// one would leave most processors without a block.
    ///
    /// # Safety
    /// `P` must be the kernels' own struct, and its addresses valid for these shapes.
    pub unsafe fn launch<P: Debug>(
        &self,
        backend: &CudaBackend<D>,
        kernels: Kernels,
        params: &P,
    ) -> Result<()> {
        let many = self.weight.outputs.div_ceil(TILE) * self.rows.div_ceil(TILE);
        if self.rows > FEW_ROWS[3] && many * CROWDED > backend.device.multiprocessors() {
            // SAFETY: the caller vouches for it.
            return unsafe { self.launch_many(backend, kernels[4], params) };
        }
        let few = FEW_ROWS.iter().position(|&rows| self.rows <= rows).unwrap_or(3);
        let rows = FEW_ROWS[few];
        let shared_bytes = SLICES * FEW_OUTPUTS * rows * size_of::<f32>();
        let grid = [self.weight.outputs.div_ceil(FEW_OUTPUTS), self.rows.div_ceil(rows), 1];
        // SAFETY: the caller vouches for it.
        unsafe { backend.launch(kernels[few], grid, SLICES as u32 * 32, shared_bytes, params) }
    }

    unsafe fn launch_many<P: Debug>(
        &self,
        backend: &CudaBackend<D>,
        kernel: &'static str,
        params: &P,
    ) -> Result<()> {
        let shared_bytes = STAGES * 2 * TILE * DEPTH * size_of::<bf16>();
        let grid = [self.weight.outputs.div_ceil(TILE), self.rows.div_ceil(TILE), 1];
        // SAFETY: the caller vouches for it.
        unsafe { backend.launch(kernel, grid, MANY_THREADS, shared_bytes, params) }
    }
}

impl<D: Device> Entries<'_, CudaBackend<D>> {
    /// The rows, for which there are entries.
    pub(super) fn checked(&self) -> usize {
        let Self { rows, starts, list } = self;
        assert!(starts.len > *rows && list.len >= *rows, "starts: [rows + 1], list: [entries]");
        *rows
    }
}

/// `out[e] = log softmax(x[r] · headᵀ)[targets[e]]` for each entry e of each row r, as many rows at a time as the workspace holds.
pub fn logprobs<D: Device>(
    backend: &CudaBackend<D>,
    x: &Buffer<D, bf16>,
    head: &Matrix<D>,
    entries: Entries<'_, CudaBackend<D>>,
    targets: &Buffer<D, u32>,
    out: &mut Buffer<D, f32>,
) -> Result<()> {
    let rows = entries.checked();
    assert!(x.len >= rows * head.inputs, "x: [rows, {}]", head.inputs);
    assert!(targets.len >= rows && out.len >= rows, "targets, out: [entries]");
    let tiles = head.outputs.div_ceil(TILE);
    let window = WORKSPACE_LEN / (2 * tiles);
    let mut workspace = backend.workspace();
    for first in (0..rows).step_by(window) {
        let rows = window.min(rows - first);
        let product = Product { rows, x, weight: head };
        let scratch = workspace.as_mut_ptr();
        let params = LogprobsParams {
            product: ProductParams {
                x: x.as_ptr().wrapping_add(first * head.inputs),
                ..product.params()
            },
            starts: entries.starts.as_ptr().wrapping_add(first),
            entries: entries.list.as_ptr(),
            targets: targets.as_ptr(),
            maxima: scratch,
            sums: scratch.wrapping_add(rows * tiles),
            out: out.as_mut_ptr(),
            tiles: count(tiles),
        };
        let shared_bytes = THREADS as usize / 32 * size_of::<f32>();
        // SAFETY: the kernels' struct; shapes checked, the scratch fits into the workspace; entries
        // are the engine's to keep in range.
        unsafe {
            product.launch_many(backend, "logprobs_tiles", &params)?;
            backend.launch("logprobs", [rows, 1, 1], THREADS, shared_bytes, &params)?;
        }
    }
    Ok(())
}
