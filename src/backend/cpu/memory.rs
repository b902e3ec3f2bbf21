//! How fast memory can be read.

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::simd::{LANES, Lanes};

/// Numbers that one task reads.
const TASK: usize = 1 << 16;
/// Vectors that are added up side by side, so that no addition waits for the one before.
const SUMS: usize = 8;

/// Adds up `values` with all threads.
pub fn sum(cpu: &CpuBackend, values: &[f32]) -> f32 {
    let tasks = values.len().div_ceil(TASK);
    let mut sums = vec![0.0; tasks];
    let places = Shared::new(&mut sums);
    cpu.team.each(tasks, true, |task| {
        let values = &values[task * TASK..values.len().min((task + 1) * TASK)];
        // SAFETY: each task has a place of its own, borrowed until all are done.
        unsafe { places.range(task, 1)[0] = task_sum(cpu.isa, values) };
    });
    sums.into_iter().sum()
}

vectorized! {
    fn task_sum(values: &[f32]) -> f32 = vector_sums::<S>;
}

#[inline(always)]
fn vector_sums<S: Lanes>(values: &[f32]) -> f32 {
    let mut sums = [S::splat(0.0); SUMS];
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (blocks, few) = vectors.as_chunks::<SUMS>();
    for block in blocks {
        for (sum, vector) in sums.iter_mut().zip(block) {
            *sum = sum.add(S::load(vector));
        }
    }
    for (sum, vector) in sums.iter_mut().zip(few) {
        *sum = sum.add(S::load(vector));
    }
    let whole = sums.into_iter().fold(S::splat(0.0), S::add);
    whole.sum() + rest.iter().sum::<f32>()
}
