//! Launches of kernels/attention.cu: which kernel, how many blocks, how much shared memory.

use super::buffer::Buffer;
use super::device::Device;
use super::params::AttentionParams;
use super::{CudaBackend, WORKSPACE_LEN, count, pool_params};
use crate::backend::{Attention, PAGE_LEN};
use crate::error::Result;
use crate::tensor::bf16;

// As in kernels/attention.cu.
const QUERIES: usize = 8;
const WARPS: usize = 4;
const THREADS: u32 = 128;
const SPLIT_PAGES: usize = 16;

/// The largest heads that there is a kernel for.
const MAX_HEAD_DIM: usize = 256;

/// Queries in f32, two pages and the weights of each warp, the latest and the running result.
fn shared_bytes(head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(8);
    let queries = QUERIES * padded * size_of::<f32>();
    let pages = WARPS * 2 * (2 * PAGE_LEN * (padded + 16)) * size_of::<bf16>();
    let weights = WARPS * PAGE_LEN * QUERIES * size_of::<f32>();
    let results = 2 * QUERIES * (padded + 2) * size_of::<f32>();
    queries + pages + weights + results
}

pub fn attention<D: Device>(
    backend: &CudaBackend<D>,
    args: Attention<'_, CudaBackend<D>>,
) -> Result<()> {
    let heads = args.shape.heads;
    let rows: usize = args.segments.iter().map(|segment| segment.rows).sum();
    assert!(heads.dim <= MAX_HEAD_DIM, "heads of {} channels, at most {MAX_HEAD_DIM}", heads.dim);
    assert!(args.layer < args.shape.layers && args.pool.len >= args.shape.len(), "pool");
    assert!(args.qkv.len >= rows * heads.qkv_width(), "qkv: [rows, ..]");
    assert!(args.out.len >= rows * heads.query_width(), "out: [rows, ..]");
    assert!(args.positions.len.min(args.row_segments.len) >= rows, "positions: [rows]");
    assert!(args.tables.len >= args.segments.len() * args.table_stride, "tables");

    let ends = args.segments.iter().map(|segment| segment.first_position + segment.rows);
    let splits = ends.max().unwrap_or(0).div_ceil(SPLIT_PAGES * PAGE_LEN);
    let head_tiles = (heads.query / heads.kv).div_ceil(QUERIES);
    // Blocks that walk over all of a row's splits keep the processors busy if there are enough.
    let blocks = rows * heads.kv * head_tiles;
    let partial_len = rows * heads.query * splits * (heads.dim + 2);
    let split =
        splits > 1 && blocks < 2 * backend.device.multiprocessors() && partial_len <= WORKSPACE_LEN;

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
        scale: args.scale,
    };
    let size = [64, 128].iter().position(|&dim| heads.dim <= dim).unwrap_or(2);
    let shared = shared_bytes(heads.dim);
    let grid = [rows, heads.kv * head_tiles, if split { splits } else { 1 }];
    let kernels = if split {
        ["attention_split_64", "attention_split_128", "attention_split_256"]
    } else {
        ["attention_64", "attention_128", "attention_256"]
    };
    // SAFETY: the kernels' struct, shapes checked; tables and positions are the engine's to keep
    // in range, the partial results fit into the workspace.
    unsafe {
        backend.launch(kernels[size], grid, THREADS, shared, &params)?;
        if split {
            let threads = count(heads.dim.next_multiple_of(32));
            backend.launch("attention_merge", [rows, heads.query, 1], threads, 0, &params)?;
        }
    }
    Ok(())
}
