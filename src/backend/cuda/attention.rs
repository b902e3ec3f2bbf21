//! Launches of kernels/attention.cu: which kernel, how many blocks, how much shared memory.

use super::buffer::Buffer;
use super::device::Device;
use super::params::AttentionParams;
use super::{CudaBackend, WORKSPACE_LEN, count, pool_params};
use crate::backend::{Attention, Heads, PAGE_LEN};
use crate::error::{Error, Result};
use crate::tensor::bf16;

// As in kernels/attention_tile.cuh.
const WARPS: usize = 4;
const THREADS: u32 = 128;
const WARP_PAGES: usize = 4;
const SPLIT: usize = WARPS * WARP_PAGES * PAGE_LEN;

/// A kernel for heads of up to `channels` channels, a block of which takes `queries` queries of
/// one K/V head.
#[derive(Clone, Copy)]
struct Kernel {
    name: &'static str,
    channels: usize,
    queries: usize,
}

const fn kernel(name: &'static str, channels: usize, queries: usize) -> Kernel {
    Kernel { name, channels, queries }
}

/// Those that fit a head best come first, then those with the largest tiles.
const KERNELS: [Kernel; 8] = [
    kernel("attention_64_32", 64, 32),
    kernel("attention_64_16", 64, 16),
    kernel("attention_64_8", 64, 8),
    kernel("attention_128_32", 128, 32),
    kernel("attention_128_16", 128, 16),
    kernel("attention_128_8", 128, 8),
    kernel("attention_256_16", 256, 16),
    kernel("attention_256_8", 256, 8),
];

impl Kernel {
    /// The one for `queries` queries of each of `kv_heads` heads over `splits` splits: the larger a
    /// tile, the more of its rows share what it reads. But a tile more than half empty wins
    /// nothing, and tiles so large that processors have no block cost more than pages read again
    /// by a neighbour, which come from the L2.
    fn choose(
        device: &impl Device,
        dim: usize,
        queries: usize,
        kv_heads: usize,
        splits: usize,
    ) -> Self {
        let fitting = || Self::fitting(dim).filter(|kernel| kernel.runs_on(device));
        let suits = |kernel: &Self| {
            let blocks = queries.div_ceil(kernel.queries) * kv_heads * splits;
            queries > kernel.queries / 2 && blocks >= device.multiprocessors()
        };
        let smallest = fitting().next_back().expect("the model's heads were checked");
        fitting().find(suits).unwrap_or(smallest)
    }

    /// Those for heads of `dim` channels.
    fn fitting(dim: usize) -> impl DoubleEndedIterator<Item = Self> {
        let channels = KERNELS.iter().map(|kernel| kernel.channels).find(|&most| dim <= most);
        KERNELS.into_iter().filter(move |kernel| Some(kernel.channels) == channels)
    }

    fn runs_on(&self, device: &impl Device) -> bool {
        self.shared_bytes() <= device.shared_bytes()
    }

    /// `Memory` of kernels/attention.cu.
    fn shared_bytes(&self) -> usize {
        let Self { channels, queries, .. } = *self;
        let stages = if channels <= 64 { 3 } else { 2 };
        let pages = WARPS * stages * 2 * PAGE_LEN * channels * size_of::<bf16>();
        // Sums, a maximum, a mass and padding.
        let sums = (channels + 4) * size_of::<f32>();
        let parts = WARPS * queries * sums;
        // For each query: its pages in the warps' lists, itself, its sums, what it sees.
        let lists = WARPS * WARP_PAGES * 4 * size_of::<u32>();
        let query = lists + channels * size_of::<bf16>() + sums + 2 * size_of::<u32>();
        pages.max(parts) + queries * query
    }
}

/// An error if no kernel for such heads runs on this device.
pub fn check_heads<D: Device>(backend: &CudaBackend<D>, heads: Heads) -> Result<()> {
    let Heads { dim, .. } = heads;
    let device = backend.device();
    let reason = match Kernel::fitting(dim).next_back() {
        Some(kernel) if kernel.runs_on(device) => return Ok(()),
        Some(kernel) => format!(
            "heads of {dim} channels take {} bytes of shared memory, of which it has {}",
            kernel.shared_bytes(),
            device.shared_bytes(),
        ),
        None => {
            let most = KERNELS.map(|kernel| kernel.channels).into_iter().max().unwrap_or(0);
            format!("the model's heads have {dim} channels, and its kernels take up to {most}")
        }
    };
    Err(Error::DeviceUnavailable { device: D::NAME, reason: format!("{reason}; --device cpu can") })
}

pub fn attention<D: Device>(
    backend: &CudaBackend<D>,
    args: Attention<'_, CudaBackend<D>>,
) -> Result<()> {
    let heads = args.shape.heads;
    let rows: usize = args.segments.iter().map(|segment| segment.rows).sum();
    assert!(args.layer < args.shape.layers && args.pool.len >= args.shape.len(), "pool");
    assert!(args.qkv.len >= rows * heads.qkv_width(), "qkv: [rows, ..]");
    assert!(args.out.len >= rows * heads.query_width(), "out: [rows, ..]");
    assert!(args.positions.len.min(args.row_segments.len) >= rows, "positions: [rows]");
    assert!(args.tables.len >= args.segments.len() * args.table_stride, "tables");

    let ends = args.segments.iter().map(|segment| segment.first_position + segment.rows);
    let splits = ends.max().unwrap_or(0).div_ceil(SPLIT);
    let queries = rows * (heads.query / heads.kv);
    let multiprocessors = backend.device().multiprocessors();
    let kernel = Kernel::choose(backend.device(), heads.dim, queries, heads.kv, splits);
    // Where that leaves processors without a block, columns of the matrix units are the cheaper waste.
    let mut tile = kernel.queries;
    while tile > 1 && queries.div_ceil(tile) * heads.kv * splits < multiprocessors {
        tile /= 2;
    }
    let tiles = queries.div_ceil(tile);
    // Blocks that walk over all of a row's splits keep the processors busy if there are enough.
    let partial_len = rows * heads.query * splits * (heads.dim + 2);
    let split =
        splits > 1 && tiles * heads.kv < 2 * multiprocessors && partial_len <= WORKSPACE_LEN;

    let mut workspace = backend.workspace();
    let params = AttentionParams {
        qkv: args.qkv.as_ptr(),
        pool: args.pool.as_ptr(),
        positions: args.positions.as_ptr(),
        row_segments: args.row_segments.as_ptr(),
        tables: args.tables.as_ptr(),
        out: Buffer::as_mut_ptr(args.out),
        partial: workspace.as_mut_ptr(),
        shape: pool_params(args.shape),
        rows: count(rows),
        layer: count(args.layer),
        table_stride: count(args.table_stride),
        window: args.window.map_or(0, |window| count(window.max(1))),
        splits: count(splits),
        tile: count(tile),
        scale: args.scale,
    };
    let grid = [tiles, heads.kv, if split { splits } else { 1 }];
    // SAFETY: the kernels' struct, shapes checked; tables and positions are the engine's to keep
    // in range, the partial results fit into the workspace.
    unsafe {
        backend.launch(kernel.name, grid, THREADS, kernel.shared_bytes(), &params)?;
        if split {
            let threads = count(heads.dim.next_multiple_of(32));
            backend.launch("attention_merge", [rows, heads.query, 1], threads, 0, &params)?;
        }
    }
    Ok(())
}
