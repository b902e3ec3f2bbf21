//! How fast memory can be read.

use rayon::prelude::*;

use super::CpuBackend;
use super::isa::vectorized;
use super::simd::{LANES, Lanes};

/// Numbers that one task reads.
const TASK: usize = 1 << 16;
/// Vectors that are added up side by side, so that no addition waits for the one before.
const SUMS: usize = 8;

/// Adds up `values` with all threads.
pub fn sum(cpu: &CpuBackend, values: &[f32]) -> f32 {
    let tasks = values.par_chunks(TASK).map(|values| task_sum(cpu.isa, values));
    cpu.pool.install(|| tasks.sum())
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
