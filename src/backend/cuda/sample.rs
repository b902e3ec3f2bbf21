//! Launches of kernels/sample.cu: the rows' settings travel as parameters, so that nothing is
//! uploaded.

use super::buffer::Buffer;
use super::device::Device;
use super::params::{SAMPLE_ROWS, SAMPLE_SHARED, SAMPLE_THREADS, SampleParams, SampleRowParams};
use super::{CudaBackend, check_logits, count};
use crate::backend::{Logits, SampleRow};
use crate::error::Result;

const ROWS: usize = SAMPLE_ROWS as usize;

fn row_params(row: &SampleRow) -> SampleRowParams {
    let halves = |number: u64| [number as u32, (number >> 32) as u32];
    SampleRowParams {
        logits: row.logits,
        temperature: row.temperature,
        top_k: row.top_k,
        top_p: row.top_p,
        candidate: row.draw.candidate,
        position: row.draw.position,
        stream: halves(row.draw.stream),
        seed: halves(row.draw.seed),
    }
}

pub fn sample<D: Device>(
    backend: &CudaBackend<D>,
    rows: &[SampleRow],
    logits: &Logits<CudaBackend<D>>,
    tokens: &mut Buffer<D, u32>,
) -> Result<()> {
    let used = rows.iter().map(|row| row.logits as usize + 1).max().unwrap_or(0);
    assert!(logits.vocab > 0, "there are tokens");
    check_logits(logits, used);
    assert!(tokens.len >= rows.len(), "tokens: [rows]");
    for (index, rows) in rows.chunks(ROWS).enumerate() {
        let mut params = SampleParams {
            logits: logits.values.as_ptr(),
            maxima: logits.maxima.as_ptr(),
            tokens: tokens.as_mut_ptr().wrapping_add(index * ROWS),
            vocab: count(logits.vocab),
            rows: [row_params(&rows[0]); ROWS],
        };
        for (param, row) in params.rows.iter_mut().zip(rows) {
            *param = row_params(row);
        }
        // SAFETY: the kernel's struct, shapes checked.
        unsafe {
            backend.launch(
                "sample",
                [rows.len(), 1, 1],
                SAMPLE_THREADS,
                SAMPLE_SHARED as usize,
                &params,
            )?;
        }
    }
    // From the last draw on, to move on with what was drawn and to run it.
    backend.queue.end_step()
}
