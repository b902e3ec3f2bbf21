//! From the last hidden state to log-probabilities, without `[rows, vocab]` in memory.

use rayon::prelude::*;

use super::CpuBackend;
use super::buffer::Shared;
use super::math::{LogSumExp, log_sum_exp};
use super::matmul::{block_rows, panel_sums, words};
use super::matrix::{Matrix, PANEL};
use crate::backend::Entries;
use crate::tensor::bf16;

/// Panels that one task runs through: 1,024 vocabulary entries. Part of the result's definition:
/// partial sums are per task and are merged in the tasks' order.
const TASK_PANELS: usize = 16;

/// `out[e] = log softmax(x[r] · headᵀ)[targets[e]]` for each entry e of each row r.
pub fn logprobs(
    cpu: &CpuBackend,
    x: &[bf16],
    head: &Matrix,
    entries: Entries<'_, CpuBackend>,
    targets: &[u32],
    out: &mut [f32],
) {
    let rows = entries.rows;
    assert!(x.len() >= rows * head.inputs, "x: [rows, width]");
    let entries: Vec<&[u32]> = (0..rows).map(|row| entries.of(row)).collect();
    let is_token = |&e: &u32| (targets[e as usize] as usize) < head.outputs;
    assert!(entries.iter().copied().flatten().all(is_token), "a target is no token");
    let x = words(cpu.isa, rows, head.inputs, x);
    let tasks = head.panels().div_ceil(TASK_PANELS);
    // `[tasks, rows]`
    let mut partials = vec![LogSumExp::EMPTY; tasks * rows];
    let block_rows = block_rows(cpu.isa, head.inputs);
    // The targets' logits at first.
    let target_logits = Shared::new(&mut *out);
    let run = |(task, partials): (usize, &mut [LogSumExp])| {
        let panels = task * TASK_PANELS..head.panels().min((task + 1) * TASK_PANELS);
        for first in (0..rows).step_by(block_rows) {
            let rows = first..rows.min(first + block_rows);
            for panel in panels.clone() {
                let output = panel * PANEL;
                let outputs = PANEL.min(head.outputs - output);
                panel_sums(cpu.isa, rows.clone(), &x, head, panel, |row, logits| {
                    for &entry in entries[row] {
                        let target = (targets[entry as usize] as usize).wrapping_sub(output);
                        if target < outputs {
                            // SAFETY: an entry has one row, and its target lies in one panel, so
                            // one task writes it; `out` is borrowed until the end.
                            unsafe { target_logits.range(entry as usize, 1)[0] = logits[target] };
                        }
                    }
                    partials[row] = log_sum_exp(cpu.isa, partials[row], &logits[..outputs]);
                });
            }
        }
    };
    if rows > 0 {
        let chunks = partials.par_chunks_mut(rows).enumerate().with_max_len(1);
        cpu.pool.install(|| chunks.for_each(run));
    }
    for (row, entries) in entries.iter().enumerate() {
        let mut total = LogSumExp::EMPTY;
        for partial in partials[row..].iter().step_by(rows) {
            total.merge(*partial);
        }
        for &entry in *entries {
            out[entry as usize] -= total.value();
        }
    }
}

/// `logits += weight · (log softmax(tuned) − log softmax(untuned))`
pub fn add_guidance(
    cpu: &CpuBackend,
    vocab: usize,
    weight: f32,
    tuned: &[f32],
    untuned: &[f32],
    logits: &mut [f32],
) {
    let total = |values: &[f32]| {
        let chunks = values.chunks(TASK_PANELS * PANEL);
        chunks.fold(LogSumExp::EMPTY, |total, chunk| log_sum_exp(cpu.isa, total, chunk)).value()
    };
    let run = |((logits, tuned), untuned): ((&mut [f32], &[f32]), &[f32])| {
        let shift = total(untuned) - total(tuned);
        for ((logit, &tuned), &untuned) in logits.iter_mut().zip(tuned).zip(untuned) {
            *logit += weight * (tuned - untuned + shift);
        }
    };
    let rows =
        logits.par_chunks_mut(vocab).zip(tuned.par_chunks(vocab)).zip(untuned.par_chunks(vocab));
    cpu.pool.install(|| rows.for_each(run));
}
