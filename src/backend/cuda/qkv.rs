//! Launches of kernels/qkv.cu, a decode step's queries, keys and values by one kernel instead of three, and of
//! kernels/store_kv.cu, which is one of the three.

use std::ptr;

use super::buffer::Buffer;
use super::device::Device;
use super::params::{QkvParams, StoreKvParams};
use super::product::Product;
use super::{CudaBackend, THREADS, count, pool_params};
use crate::backend::{Entries, PoolShape, Qkv};
use crate::error::Result;
use crate::tensor::bf16;

/// Rows of a block of its kernels.
const ROWS: [(usize, &str); 2] = [(8, "qkv_8"), (16, "qkv_16")];
/// Weights of a matrix beyond which a wide kernel and two more launches take less time.
const LARGEST: usize = 16 << 20;
/// Where a wide kernel has blocks for this percentage of the processors, 9 to 16 rows are left to it.
const BUSY: usize = 30;

/// Runs the one kernel if it is the better way; false if nothing was done.
pub fn qkv<D: Device>(
    backend: &CudaBackend<D>,
    args: &mut Qkv<'_, CudaBackend<D>>,
) -> Result<bool> {
    let rows = args.entries.checked();
    let heads = args.shape.heads;
    let product = Product::new(rows, args.x, args.weight);
    let Some(&(block_rows, kernel)) = ROWS.iter().find(|(most, _)| rows <= *most) else {
        return Ok(false);
    };
    let small = args.weight.outputs * args.weight.inputs <= LARGEST;
    let better = if rows <= ROWS[0].0 { small } else { !product.busies(backend.device(), BUSY) };
    // A block's lines are 8 channels of a head's first half and those that they are rotated with.
    let fits = heads.dim.is_multiple_of(16) && product.is_whole_chunks();
    if !(fits && better) {
        return Ok(false);
    }
    assert_eq!(args.weight.outputs, heads.qkv_width(), "weight: [(q + 2 kv) * head_dim, in]");
    assert!(args.bias.is_none_or(|bias| bias.len == heads.qkv_width()), "bias: [out]");
    assert!(args.out.len >= rows * heads.qkv_width(), "out: [rows, ..]");
    assert!(args.slots.len >= rows && args.pool.len >= args.shape.len(), "slots, pool");
    assert!(args.layer < args.shape.layers, "layer {} of {:?}", args.layer, args.shape);
    let (mut positions, mut cos_sin) = (ptr::null(), ptr::null());
    if let Some(rotary) = &args.rotary {
        assert!(rotary.positions.len >= rows, "positions: [rows]");
        (positions, cos_sin) = (rotary.positions.as_ptr(), rotary.cos_sin.as_ptr());
    }
    let params = QkvParams {
        product: product.params(),
        bias: args.bias.map_or(ptr::null(), Buffer::as_ptr),
        positions,
        cos_sin,
        starts: args.entries.starts.as_ptr(),
        entries: args.entries.list.as_ptr(),
        slots: args.slots.as_ptr(),
        out: args.out.as_mut_ptr(),
        pool: args.pool.as_mut_ptr(),
        shape: pool_params(args.shape),
        layer: count(args.layer),
    };
    // SAFETY: the kernels' struct, shapes checked; positions, slots and entries are the engine's to keep in range.
    unsafe { product.launch_few(backend, kernel, block_rows, &params)? };
    Ok(true)
}

/// See [`Backend::store_kv`](crate::backend::Backend::store_kv).
pub fn store_kv<D: Device>(
    backend: &CudaBackend<D>,
    layer: usize,
    shape: PoolShape,
    qkv: &Buffer<D, bf16>,
    entries: Entries<'_, CudaBackend<D>>,
    slots: &Buffer<D, u32>,
    pool: &mut Buffer<D, bf16>,
) -> Result<()> {
    let rows = entries.checked();
    assert!(slots.len >= rows && qkv.len >= rows * shape.heads.qkv_width(), "qkv: [rows, ..]");
    assert!(layer < shape.layers && pool.len >= shape.len(), "layer {layer} of {shape:?}");
    let params = StoreKvParams {
        qkv: qkv.as_ptr(),
        starts: entries.starts.as_ptr(),
        entries: entries.list.as_ptr(),
        slots: slots.as_ptr(),
        pool: pool.as_mut_ptr(),
        shape: pool_params(shape),
        layer: count(layer),
    };
    let heads = shape.heads;
    let threads = count(heads.dim.next_multiple_of(32).min(THREADS as usize));
    // SAFETY: the kernel's struct, shapes checked; slots and entries are the engine's.
    unsafe { backend.launch("store_kv", [rows, 2 * heads.kv, 1], threads, 0, &params) }
}
