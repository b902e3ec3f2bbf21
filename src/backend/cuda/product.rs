//! Launches of kernels/product.cuh: x · weightᵀ for few rows, for many, and for log-probabilities.

use std::ptr;

use super::buffer::{Buffer, Matrix};
use super::device::Device;
use super::params::{
    LogitsParams, LogprobsParams, MatmulParams, MatmulSiluGateParams, ProductParams,
};
use super::replay::Params;
use super::{CudaBackend, THREADS, WORKSPACE_LEN, check_logits, count};
use crate::backend::{Entries, Logits};
use crate::error::Result;
use crate::tensor::bf16;

// As in kernels/product.cuh.
const SLICES: usize = 8;
const FEW_LINES: usize = 16;
const DEPTH: usize = 32;
const STAGES: usize = 4;

/// Rows of a block of the kernels for few rows.
const FEW_ROWS: [usize; 4] = [8, 16, 32, 64];
/// Up to so many rows, those kernels are the faster ones whatever the shape.
const FEW: usize = 16;

/// Lines of weights and rows of a block of a kernel for many rows.
#[derive(Clone, Copy)]
struct Tiling {
    weights: usize,
    rows: usize,
    threads: u32,
}

const LARGE: Tiling = Tiling { weights: 128, rows: 128, threads: 256 };
const NARROW: Tiling = Tiling { weights: 128, rows: 64, threads: 128 };
const SMALL: Tiling = Tiling { weights: 64, rows: 64, threads: 128 };

impl Tiling {
    fn grid(&self, rows: usize, lines: usize) -> [usize; 3] {
        [lines.div_ceil(self.weights), rows.div_ceil(self.rows), 1]
    }

    fn blocks(&self, rows: usize, lines: usize) -> usize {
        self.grid(rows, lines).iter().product()
    }

    /// Stages of two steps.
    fn shared_bytes(&self) -> usize {
        STAGES * 2 * (self.weights + self.rows) * DEPTH * size_of::<bf16>()
    }

    /// True if large tiles are better than those with half of their rows: they read less, but in
    /// them more rows may be missing.
    fn is_for(&self, device: &impl Device, rows: usize) -> bool {
        rows.div_ceil(self.rows) * self.rows * 7 <= rows * 8
            && self.shared_bytes() <= device.shared_bytes()
    }
}

/// An op's kernels for up to 8, 16, 32 and 64 rows, and for more in small and in large tiles.
pub type Kernels = [&'static str; 6];
pub const MATMUL: Kernels =
    ["matmul_8", "matmul_16", "matmul_32", "matmul_64", "matmul_small", "matmul_large"];
pub const MATMUL_ADD: Kernels = [
    "matmul_add_8",
    "matmul_add_16",
    "matmul_add_32",
    "matmul_add_64",
    "matmul_add_small",
    "matmul_add_large",
];
pub const MATMUL_GELU: Kernels = [
    "matmul_gelu_8",
    "matmul_gelu_16",
    "matmul_gelu_32",
    "matmul_gelu_64",
    "matmul_gelu_small",
    "matmul_gelu_large",
];
pub const MATMUL_GELU_ERF: Kernels = [
    "matmul_gelu_erf_8",
    "matmul_gelu_erf_16",
    "matmul_gelu_erf_32",
    "matmul_gelu_erf_64",
    "matmul_gelu_erf_small",
    "matmul_gelu_erf_large",
];
const MATMUL_SILU_GATE: Kernels = [
    "matmul_silu_gate_8",
    "matmul_silu_gate_16",
    "matmul_silu_gate_32",
    "matmul_silu_gate_64",
    "matmul_silu_gate_small",
    "matmul_silu_gate_large",
];
const LOGITS: Kernels =
    ["logits_8", "logits_16", "logits_32", "logits_64", "logits_small", "logits_large"];

/// The operands of one product.
pub struct Product<'a, D: Device> {
    rows: usize,
    x: &'a Buffer<D, bf16>,
    weight: &'a Matrix<D>,
    /// Matrices of this shape, which take turns: 1, or 2.
    matrices: usize,
}

impl<'a, D: Device> Product<'a, D> {
    pub fn new(rows: usize, x: &'a Buffer<D, bf16>, weight: &'a Matrix<D>) -> Self {
        assert!(x.len >= rows * weight.inputs, "x: [rows, {}]", weight.inputs);
        Self { rows, x, weight, matrices: 1 }
    }

    /// Lines of weights.
    fn lines(&self) -> usize {
        self.matrices * self.weight.outputs
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

    /// Launches the kernel for this shape. All of them add in the same order, so the choice is free:
    /// tiles through shared memory where they give most processors a block, and the larger ones where
    /// these do too; else those for few rows, which also take more of them, 64 a block. The limits
    /// are from measurements of all kernels on an H100 (benches/results/h100.md).
    ///
    /// # Safety
    /// `P` must be the kernels' own struct, and its addresses valid for these shapes.
    pub unsafe fn launch<P: Params>(
        &self,
        backend: &CudaBackend<D>,
        kernels: Kernels,
        params: &P,
    ) -> Result<()> {
        let (rows, lines) = (self.rows, self.lines());
        let processors = backend.device().multiprocessors();
        let [.., small, large] = kernels;
        let busy = |tiling: Tiling, share: usize| {
            rows > FEW && tiling.blocks(rows, lines) * 10 >= processors * share
        };
        if busy(LARGE, 9) && LARGE.is_for(backend.device(), rows) {
            // SAFETY: the caller vouches for it.
            return unsafe { self.launch_tiles(backend, large, LARGE, params) };
        }
        if busy(SMALL, 7) {
            // SAFETY: the caller vouches for it.
            return unsafe { self.launch_tiles(backend, small, SMALL, params) };
        }
        let few = FEW_ROWS.iter().position(|&few| rows <= few).unwrap_or(3);
        let block_rows = FEW_ROWS[few];
        let shared_bytes = SLICES * FEW_LINES * block_rows * size_of::<f32>();
        let grid = [lines.div_ceil(FEW_LINES), rows.div_ceil(block_rows), 1];
        // SAFETY: the caller vouches for it.
        unsafe { backend.launch(kernels[few], grid, SLICES as u32 * 32, shared_bytes, params) }
    }

    unsafe fn launch_tiles<P: Params>(
        &self,
        backend: &CudaBackend<D>,
        kernel: &'static str,
        tiling: Tiling,
        params: &P,
    ) -> Result<()> {
        let grid = tiling.grid(self.rows, self.lines());
        // SAFETY: the caller vouches for it.
        unsafe { backend.launch(kernel, grid, tiling.threads, tiling.shared_bytes(), params) }
    }
}

/// A product by the `kernels` of matmul, or of a matmul with an activation.
pub fn matmul<D: Device>(
    backend: &CudaBackend<D>,
    kernels: Kernels,
    rows: usize,
    x: &Buffer<D, bf16>,
    weight: &Matrix<D>,
    bias: Option<&Buffer<D, f32>>,
    out: &mut Buffer<D, bf16>,
) -> Result<()> {
    assert!(out.len >= rows * weight.outputs, "out: [rows, {}]", weight.outputs);
    assert!(bias.is_none_or(|bias| bias.len == weight.outputs), "bias: [out]");
    let product = Product::new(rows, x, weight);
    let params = MatmulParams {
        product: product.params(),
        bias: bias.map_or(ptr::null(), Buffer::as_ptr),
        out: out.as_mut_ptr(),
    };
    // SAFETY: the kernels' struct, shapes checked.
    unsafe { product.launch(backend, kernels, &params) }
}

/// See [`Backend::matmul_silu_gate`](crate::backend::Backend::matmul_silu_gate).
pub fn matmul_silu_gate<D: Device>(
    backend: &CudaBackend<D>,
    rows: usize,
    x: &Buffer<D, bf16>,
    [gate, up]: [&Matrix<D>; 2],
    biases: Option<[&Buffer<D, f32>; 2]>,
    out: &mut Buffer<D, bf16>,
) -> Result<()> {
    let (inputs, outputs) = (gate.inputs, gate.outputs);
    assert_eq!((up.inputs, up.outputs), (inputs, outputs), "gate, up: [out, in]");
    assert!(out.len >= rows * outputs, "out: [rows, {outputs}]");
    assert!(biases.iter().flatten().all(|bias| bias.len == outputs), "biases: [out] each");
    let product = Product { matrices: 2, ..Product::new(rows, x, gate) };
    let [gate_bias, up_bias] = biases.map_or([ptr::null(); 2], |biases| biases.map(Buffer::as_ptr));
    let params = MatmulSiluGateParams {
        product: product.params(),
        up: up.data.as_ptr(),
        gate_bias,
        up_bias,
        out: out.as_mut_ptr(),
    };
    // SAFETY: the kernels' struct, shapes checked.
    unsafe { product.launch(backend, MATMUL_SILU_GATE, &params) }
}

/// See [`Backend::logits`](crate::backend::Backend::logits).
pub fn logits<D: Device>(
    backend: &CudaBackend<D>,
    rows: usize,
    x: &Buffer<D, bf16>,
    head: &Matrix<D>,
    out: &mut Logits<CudaBackend<D>>,
) -> Result<()> {
    assert_eq!(out.vocab, head.outputs, "logits: [rows, vocab]");
    check_logits(out, rows);
    let product = Product::new(rows, x, head);
    let params = LogitsParams {
        product: product.params(),
        out: out.values.as_mut_ptr(),
        maxima: out.maxima.as_mut_ptr(),
    };
    let grid = [head.outputs.div_ceil(THREADS as usize), rows, 1];
    // SAFETY: the kernels' struct, shapes checked.
    unsafe {
        product.launch(backend, LOGITS, &params)?;
        backend.launch("logits_maxima", grid, THREADS, 0, &params)
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
    let tiles = head.outputs.div_ceil(LARGE.weights);
    let window = WORKSPACE_LEN / (2 * tiles);
    let mut workspace = backend.workspace();
    for first in (0..rows).step_by(window) {
        let rows = window.min(rows - first);
        let product = Product { rows, x, weight: head, matrices: 1 };
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
        let (kernel, tiling) = if LARGE.is_for(backend.device(), rows) {
            ("logprobs_large", LARGE)
        } else {
            ("logprobs_narrow", NARROW)
        };
        let shared_bytes = THREADS as usize / 32 * size_of::<f32>();
        // SAFETY: the kernels' struct; shapes checked, the scratch fits into the workspace; entries
        // are the engine's to keep in range.
        unsafe {
            product.launch_tiles(backend, kernel, tiling, &params)?;
            backend.launch("logprobs", [rows, 1, 1], THREADS, shared_bytes, &params)?;
        }
    }
    Ok(())
}
