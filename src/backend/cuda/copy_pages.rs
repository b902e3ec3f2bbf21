//! Launches of kernels/copy_pages.cu: which pages travels as parameters, so that nothing is uploaded.

use super::buffer::Buffer;
use super::device::Device;
use super::params::{CopyPagesParams, PAGE_COPIES, PageCopyParams};
use super::{CudaBackend, THREADS, pool_params};
use crate::backend::PoolShape;
use crate::error::Result;
use crate::tensor::bf16;

/// Copies of one launch.
const COPIES: usize = PAGE_COPIES as usize;

pub fn copy_pages<D: Device>(
    backend: &CudaBackend<D>,
    shape: PoolShape,
    copies: &[(u32, u32)],
    pool: &mut Buffer<D, bf16>,
) -> Result<()> {
    assert!(pool.len >= shape.len(), "pool: {shape:?}");
    for copies in copies.chunks(COPIES) {
        let mut params = CopyPagesParams {
            pool: pool.as_mut_ptr(),
            shape: pool_params(shape),
            copies: [PageCopyParams { from: 0, to: 0 }; COPIES],
        };
        for (param, &(from, to)) in params.copies.iter_mut().zip(copies) {
            let last = from.max(to) as usize;
            assert!(last < shape.pages, "page {from} or {to} of {}", shape.pages);
            *param = PageCopyParams { from, to };
        }
        // SAFETY: the kernel's struct, pages checked.
        unsafe {
            backend.launch("copy_pages", [copies.len(), shape.layers, 1], THREADS, 0, &params)?;
        }
    }
    Ok(())
}
