//! The launch of kernels/advance.cu.

use super::device::Device;
use super::params::AdvanceParams;
use super::{CudaBackend, THREADS, count};
use crate::backend::Advance;
use crate::error::Result;

pub fn advance<D: Device>(
    backend: &CudaBackend<D>,
    args: Advance<'_, CudaBackend<D>>,
) -> Result<()> {
    let Advance { rows, step, drawn, ends, tables, table_stride, .. } = args;
    assert!(drawn.len >= rows && tables.len >= rows * table_stride, "drawn, tables: [rows, ..]");
    assert!(args.tokens.len.min(args.positions.len).min(args.slots.len) >= rows, "[rows] each");
    assert!(args.history.len >= (step + 1) * rows, "history: [steps, rows]");
    let params = AdvanceParams {
        drawn: drawn.as_ptr(),
        ends: ends.as_ptr(),
        tables: tables.as_ptr(),
        tokens: args.tokens.as_mut_ptr(),
        positions: args.positions.as_mut_ptr(),
        slots: args.slots.as_mut_ptr(),
        history: args.history.as_mut_ptr(),
        rows: count(rows),
        step: count(step),
        end_count: count(ends.len),
        table_stride: count(table_stride),
    };
    let blocks = rows.div_ceil(THREADS as usize);
    // SAFETY: the kernel's struct, shapes checked.
    unsafe { backend.launch("advance", [blocks, 1, 1], THREADS, 0, &params) }
}
