//! Launches of kernels/product.cuh: x · weightᵀ for few rows, for many, and for log-probabilities.

use std::ptr;

use super::buffer::{Buffer, Matrix};
use super::device::{Device, TileShape};
use super::params::{
    LogitsParams, LogprobsParams, MatmulParams, MatmulSiluGateParams, ProductParams, TileMap,
};
use super::replay::Params;
use super::{CudaBackend, THREADS, WORKSPACE_LEN, check_logits, count};
use crate::backend::{Entries, Logits};
use crate::error::Result;
use crate::tensor::bf16;

// As in kernels/product.cuh.
const SLICES: usize = 8;
const FEW_LINES: usize = 16;
const CHUNK: usize = 8;
const STEP: usize = 64;
const STAGES: usize = 4;

/// Rows of a block of the kernels for few rows, and of the one for rows that are no whole chunks.
const FEW_ROWS: [usize; 4] = [8, 16, 32, 64];
const ODD_ROWS: usize = 16;
/// Up to so many rows, those kernels are the faster ones whatever the shape, where there are no wide ones.
const FEW: usize = 16;

/// Lines of weights and rows of a block of a kernel for many rows by mma.sync.
#[derive(Clone, Copy)]
struct Tiling {
    lines: usize,
    rows: usize,
    threads: u32,
}

const LARGE: Tiling = Tiling { lines: 128, rows: 128, threads: 256 };
const NARROW: Tiling = Tiling { lines: 128, rows: 64, threads: 128 };
const SMALL: Tiling = Tiling { lines: 64, rows: 64, threads: 128 };

impl Tiling {
    fn grid(&self, rows: usize, lines: usize) -> [usize; 3] {
        [lines.div_ceil(self.lines), rows.div_ceil(self.rows), 1]
    }

    fn blocks(&self, rows: usize, lines: usize) -> usize {
        self.grid(rows, lines).iter().product()
    }

    fn shared_bytes(&self) -> usize {
        STAGES * STEP * (self.lines + self.rows) * size_of::<bf16>()
    }

    /// True if large tiles are better than those with half of their rows: they read less, but in
    /// them more rows may be missing.
    fn is_for(&self, device: &impl Device, rows: usize) -> bool {
        rows.div_ceil(self.rows) * self.rows * 7 <= rows * 8
            && self.shared_bytes() <= device.shared_bytes()
    }
}

/// Lines of weights and rows of a block of a wide kernel (kernels/product_wide.cuh).
#[derive(Clone, Copy)]
struct Wide {
    lines: usize,
    rows: usize,
    stages: usize,
    /// What a step takes a block that has its processor to itself: nanoseconds on an H200.
    step_ns: usize,
}

/// An H100 reads 3,000 bytes of its memory in a nanosecond, an H200 4,500.
const MEMORY_BYTES_PER_NS: usize = 4000;

const WIDE: [Wide; 6] = [
    Wide { lines: 64, rows: 16, stages: 10, step_ns: 138 },
    Wide { lines: 64, rows: 32, stages: 8, step_ns: 142 },
    Wide { lines: 64, rows: 64, stages: 6, step_ns: 158 },
    Wide { lines: 128, rows: 64, stages: 8, step_ns: 190 },
    Wide { lines: 128, rows: 128, stages: 6, step_ns: 310 },
    Wide { lines: 128, rows: 160, stages: 5, step_ns: 390 },
];

impl Wide {
    fn grid(&self, rows: usize, lines: usize) -> [usize; 3] {
        [rows.div_ceil(self.rows), lines.div_ceil(self.lines), 1]
    }

    fn threads(&self) -> u32 {
        self.lines as u32 * 2 + 128
    }

    fn shared_bytes(&self) -> usize {
        let stage = STEP * (self.lines + self.rows) * size_of::<bf16>() + 2 * size_of::<u64>();
        self.stages * stage + 2 * size_of::<u64>() + 1024
    }

    /// The one that takes the least time, for a step of which there are equally many. A processor's blocks share what
    /// it reads, so they take their time one after another; nothing is faster than the memory is, and of equals the
    /// first reads the fewest rows of x.
    fn choose(tilings: &[Self], processors: usize, rows: usize, lines: usize) -> usize {
        let time = |tiling: &Self| {
            let blocks: usize = tiling.grid(rows, lines).iter().product();
            let bytes = lines * STEP * size_of::<bf16>();
            (blocks.div_ceil(processors) * tiling.step_ns).max(bytes / MEMORY_BYTES_PER_NS)
        };
        let times = tilings.iter().map(time);
        times.enumerate().min_by_key(|&(_, time)| time).expect("there are tilings").0
    }
}

/// An op's kernels.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// For up to as many rows as [`FEW_ROWS`] says.
    few: [&'static str; 4],
    /// Where rows of x and of weights are no whole chunks.
    odd: &'static str,
    small: &'static str,
    large: &'static str,
    /// As [`WIDE`].
    wide: [&'static str; 6],
}

macro_rules! kernels {
    ($op:literal) => {
        Kernels {
            few: [
                concat!($op, "_8"),
                concat!($op, "_16"),
                concat!($op, "_32"),
                concat!($op, "_64"),
            ],
            odd: concat!($op, "_odd"),
            small: concat!($op, "_small"),
            large: concat!($op, "_large"),
            wide: [
                concat!($op, "_64x16"),
                concat!($op, "_64x32"),
                concat!($op, "_64x64"),
                concat!($op, "_128x64"),
                concat!($op, "_128x128"),
                concat!($op, "_128x160"),
            ],
        }
    };
}

pub const MATMUL: Kernels = kernels!("matmul");
pub const MATMUL_ADD: Kernels = kernels!("matmul_add");
pub const MATMUL_GELU: Kernels = kernels!("matmul_gelu");
pub const MATMUL_GELU_ERF: Kernels = kernels!("matmul_gelu_erf");
const MATMUL_SILU_GATE: Kernels = kernels!("matmul_silu_gate");
pub const LOGITS: Kernels = kernels!("logits");

/// The operands of one product.
pub struct Product<'a, D: Device> {
    rows: usize,
    x: &'a Buffer<D, bf16>,
    weight: &'a Matrix<D>,
    /// Another of the same shape, whose lines take turns with the first one's.
    second: Option<&'a Matrix<D>>,
    /// The first row of x that is meant.
    first: usize,
}

/// How a product is launched.
enum Plan {
    Few { kernel: &'static str, rows: usize },
    Tiles(&'static str, Tiling),
    Wide(&'static str, Wide),
}

impl<'a, D: Device> Product<'a, D> {
    pub fn new(rows: usize, x: &'a Buffer<D, bf16>, weight: &'a Matrix<D>) -> Self {
        assert!(x.len >= rows * weight.inputs, "x: [rows, {}]", weight.inputs);
        Self { rows, x, weight, second: None, first: 0 }
    }

    /// Lines of weights.
    fn lines(&self) -> usize {
        (1 + usize::from(self.second.is_some())) * self.weight.outputs
    }

    /// The kernel for this shape. All of them add in the same order, so the choice is free; its limits are from
    /// measurements of all kernels (benches/results/h200.md).
    fn plan(&self, device: &D, kernels: Kernels) -> Plan {
        let (rows, lines, processors) = (self.rows, self.lines(), device.multiprocessors());
        if !self.is_whole_chunks() {
            return Plan::Few { kernel: kernels.odd, rows: ODD_ROWS };
        }
        if device.multiplies_wide()
            && self.second.is_none_or(|_| self.weight.outputs.is_multiple_of(8))
        {
            // Blocks of 16 lines keep more processors busy where there are few lines.
            let wanted = if rows <= FEW_ROWS[0] { 45 } else { 18 };
            if rows > FEW || self.busies(device, wanted) {
                let index = Wide::choose(&WIDE, processors, rows, lines);
                return Plan::Wide(kernels.wide[index], WIDE[index]);
            }
        } else if rows > FEW {
            let busy = |tiling: Tiling, share: usize| {
                tiling.blocks(rows, lines) * 10 >= processors * share
            };
            if busy(LARGE, 9) && LARGE.is_for(device, rows) {
                return Plan::Tiles(kernels.large, LARGE);
            }
            if busy(SMALL, 7) {
                return Plan::Tiles(kernels.small, SMALL);
            }
        }
        let few = FEW_ROWS.iter().position(|&few| rows <= few).unwrap_or(3);
        Plan::Few { kernel: kernels.few[few], rows: FEW_ROWS[few] }
    }

    /// Launches a kernel for this shape with what `params` makes of the product's own.
    ///
    /// # Safety
    /// `P` must be the kernels' own struct, and its addresses valid for these shapes.
    pub unsafe fn launch<P: Params>(
        &self,
        backend: &CudaBackend<D>,
        kernels: Kernels,
        params: impl FnOnce(ProductParams) -> P,
    ) -> Result<()> {
        let plan = self.plan(backend.device(), kernels);
        // SAFETY: the caller vouches for it.
        unsafe { self.launch_by(backend, plan, params) }
    }

    /// Launches the kernel of a plan.
    ///
    /// # Safety
    /// As [`Product::launch`].
    unsafe fn launch_by<P: Params>(
        &self,
        backend: &CudaBackend<D>,
        plan: Plan,
        params: impl FnOnce(ProductParams) -> P,
    ) -> Result<()> {
        match plan {
            Plan::Few { kernel, rows } => {
                // SAFETY: the caller vouches for it.
                unsafe { self.launch_few(backend, kernel, rows, &params(self.params())) }
            }
            Plan::Tiles(kernel, tiling) => {
                let params = params(self.params());
                // SAFETY: the caller vouches for it.
                unsafe { self.launch_tiles(backend, kernel, tiling, &params) }
            }
            Plan::Wide(kernel, tiling) => {
                let params = params(self.params_with_maps(backend, tiling)?);
                // SAFETY: the caller vouches for it.
                unsafe { self.launch_wide(backend, kernel, tiling, 0, &params) }
            }
        }
    }

    /// True if rows of x and of weights are whole chunks, as all kernels but the odd ones want them.
    pub fn is_whole_chunks(&self) -> bool {
        self.weight.inputs.is_multiple_of(CHUNK)
    }

    /// True if a wide kernel has blocks for this percentage of the processors.
    pub fn busies(&self, device: &D, percent: usize) -> bool {
        self.lines().div_ceil(WIDE[0].lines) * 100 >= device.multiprocessors() * percent
    }

    /// Launches a kernel for few rows, `rows` a block.
    ///
    /// # Safety
    /// As [`Product::launch`].
    pub unsafe fn launch_few<P: Params>(
        &self,
        backend: &CudaBackend<D>,
        kernel: &'static str,
        rows: usize,
        params: &P,
    ) -> Result<()> {
        let shared_bytes = SLICES * FEW_LINES * rows * size_of::<f32>();
        let grid = [self.lines().div_ceil(FEW_LINES), self.rows.div_ceil(rows), 1];
        // SAFETY: the caller vouches for it.
        unsafe { backend.launch(kernel, grid, SLICES as u32 * 32, shared_bytes, params) }
    }

    pub fn params(&self) -> ProductParams {
        ProductParams {
            x: self.x.as_ptr().wrapping_add(self.first * self.weight.inputs),
            weight: self.weight.data.as_ptr(),
            rows: count(self.rows),
            inputs: count(self.weight.inputs),
            outputs: count(self.weight.outputs),
            x_map: ptr::null(),
            weight_map: ptr::null(),
        }
    }

    /// As [`Product::params`], with maps for a wide kernel. All rows that x has room for are in its map, so that a map serves every
    /// batch. Of two matrices, the map begins with the one that lies lower in memory.
    fn params_with_maps(&self, backend: &CudaBackend<D>, tiling: Wide) -> Result<ProductParams> {
        let Matrix { inputs, outputs, .. } = *self.weight;
        let params = self.params();
        let map = |address, rows, box_rows, twin| {
            let shape = TileShape { address, inputs, rows, box_rows, twin };
            Ok(backend.device().tile_map(shape)? as *const TileMap)
        };
        let address = self.weight.data.address;
        let second = self.second.map_or(address, |second| second.data.address);
        let twin = self.second.map(|_| address.abs_diff(second));
        Ok(ProductParams {
            x_map: map(params.x as u64, self.x.len / inputs - self.first, tiling.rows, None)?,
            weight_map: map(address.min(second), outputs, tiling.lines, twin)?,
            ..params
        })
    }

    /// Launches the first kernel of logprobs. Its tiles have 128 lines, so that a row's bits do not depend on how many
    /// rows they have.
    ///
    /// # Safety
    /// As [`Product::launch`].
    unsafe fn launch_logprobs(
        &self,
        backend: &CudaBackend<D>,
        params: impl Fn(ProductParams) -> LogprobsParams,
    ) -> Result<()> {
        const KERNELS: [&str; 3] = ["logprobs_128x64", "logprobs_128x128", "logprobs_128x160"];
        let device = backend.device();
        if self.is_whole_chunks() && device.multiplies_wide() {
            let tilings = &WIDE[WIDE.len() - KERNELS.len()..];
            let index =
                Wide::choose(tilings, device.multiprocessors(), self.rows, self.weight.outputs);
            let tiling = tilings[index];
            let params = params(self.params_with_maps(backend, tiling)?);
            // A maximum and a sum of each warp and row.
            let beyond = 2 * tiling.lines / 16 * tiling.rows * size_of::<f32>();
            // SAFETY: the caller vouches for it.
            return unsafe { self.launch_wide(backend, KERNELS[index], tiling, beyond, &params) };
        }
        let (kernel, tiling) = if !self.is_whole_chunks() {
            ("logprobs_odd", NARROW)
        } else if LARGE.is_for(device, self.rows) {
            ("logprobs_large", LARGE)
        } else {
            ("logprobs_narrow", NARROW)
        };
        // SAFETY: the caller vouches for it.
        unsafe { self.launch_tiles(backend, kernel, tiling, &params(self.params())) }
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

    unsafe fn launch_wide<P: Params>(
        &self,
        backend: &CudaBackend<D>,
        kernel: &'static str,
        tiling: Wide,
        beyond: usize,
        params: &P,
    ) -> Result<()> {
        let (grid, shared) = (tiling.grid(self.rows, self.lines()), tiling.shared_bytes() + beyond);
        // SAFETY: the caller vouches for it.
        unsafe { backend.launch(kernel, grid, tiling.threads(), shared, params) }
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
    let bias = bias.map_or(ptr::null(), Buffer::as_ptr);
    let params = |product| MatmulParams { product, bias, out: out.as_mut_ptr() };
    // SAFETY: the kernels' struct, shapes checked.
    unsafe { product.launch(backend, kernels, params) }
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
    let product = Product { second: Some(up), ..Product::new(rows, x, gate) };
    let [gate_bias, up_bias] = biases.map_or([ptr::null(); 2], |biases| biases.map(Buffer::as_ptr));
    let params = |product| MatmulSiluGateParams {
        product,
        up: up.data.as_ptr(),
        gate_bias,
        up_bias,
        out: out.as_mut_ptr(),
    };
    // SAFETY: the kernels' struct, shapes checked.
    unsafe { product.launch(backend, MATMUL_SILU_GATE, params) }
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
    let (values, maxima) = (out.values.as_mut_ptr(), out.maxima.as_mut_ptr());
    let params = |product| LogitsParams { product, out: values, maxima };
    // SAFETY: the kernels' struct, shapes checked.
    unsafe { product.launch(backend, LOGITS, params) }
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
    let tiles = head.outputs.div_ceil(LARGE.lines);
    let window = WORKSPACE_LEN / (2 * tiles);
    let mut workspace = backend.workspace();
    for first in (0..rows).step_by(window) {
        let rows = window.min(rows - first);
        let product = Product { rows, first, ..Product::new(rows, x, head) };
        let (scratch, out) = (workspace.as_mut_ptr(), out.as_mut_ptr());
        let params = |product| LogprobsParams {
            product,
            starts: entries.starts.as_ptr().wrapping_add(first),
            entries: entries.list.as_ptr(),
            targets: targets.as_ptr(),
            maxima: scratch,
            sums: scratch.wrapping_add(rows * tiles),
            out,
            tiles: count(tiles),
        };
        let shared_bytes = THREADS as usize / 32 * size_of::<f32>();
        // SAFETY: the kernels' struct; shapes checked, the scratch fits into the workspace; entries
        // are the engine's to keep in range.
        unsafe {
            product.launch_logprobs(backend, params)?;
            let params = params(product.params());
            backend.launch("logprobs", [rows, 1, 1], THREADS, shared_bytes, &params)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
