//! The launch of kernels/add_guidance.cu.

use super::buffer::Buffer;
use super::device::Device;
use super::params::{AddGuidanceParams, GUIDANCE_THREADS};
use super::{CudaBackend, count};
use crate::error::Result;

pub fn add_guidance<D: Device>(
    backend: &CudaBackend<D>,
    rows: usize,
    weight: f32,
    [(tuned, tuned_vocab), (untuned, untuned_vocab)]: [(&Buffer<D, f32>, usize); 2],
    (logits, vocab): (&mut Buffer<D, f32>, usize),
) -> Result<()> {
    let fits = |len, vocab| len >= rows * vocab;
    assert!(fits(tuned.len, tuned_vocab), "tuned: [rows, {tuned_vocab}]");
    assert!(fits(untuned.len, untuned_vocab), "untuned: [rows, {untuned_vocab}]");
    assert!(fits(logits.len, vocab), "logits: [rows, {vocab}]");
    let params = AddGuidanceParams {
        tuned: tuned.as_ptr(),
        untuned: untuned.as_ptr(),
        logits: logits.as_mut_ptr(),
        tuned_vocab: count(tuned_vocab),
        untuned_vocab: count(untuned_vocab),
        vocab: count(vocab),
        weight,
    };
    let widest = vocab.max(tuned_vocab).max(untuned_vocab);
    // SAFETY: the kernel's struct, shapes checked.
    unsafe { backend.by_row("add_guidance", rows, widest, GUIDANCE_THREADS, &params) }
}
