//! The launch of kernels/add_guidance.cu.

use super::device::Device;
use super::params::{AddGuidanceParams, GUIDANCE_THREADS};
use super::{CudaBackend, check_logits, count};
use crate::backend::Logits;
use crate::error::Result;

pub fn add_guidance<D: Device>(
    backend: &CudaBackend<D>,
    rows: usize,
    weight: f32,
    [tuned, untuned]: [&Logits<CudaBackend<D>>; 2],
    logits: &mut Logits<CudaBackend<D>>,
) -> Result<()> {
    [tuned, untuned, &*logits].into_iter().for_each(|logits| check_logits(logits, rows));
    let params = AddGuidanceParams {
        tuned: tuned.values.as_ptr(),
        untuned: untuned.values.as_ptr(),
        logits: logits.values.as_mut_ptr(),
        maxima: logits.maxima.as_mut_ptr(),
        tuned_vocab: count(tuned.vocab),
        untuned_vocab: count(untuned.vocab),
        vocab: count(logits.vocab),
        weight,
    };
    let widest = logits.vocab.max(tuned.vocab).max(untuned.vocab);
    // SAFETY: the kernel's struct, shapes checked.
    unsafe { backend.by_row("add_guidance", rows, widest, GUIDANCE_THREADS, &params) }
}
