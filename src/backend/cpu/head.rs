//! From the last hidden state to log-probabilities, without `[rows, vocab]` in memory.

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::{LogSumExp, log_sum_exp, plus};
use super::matmul::{Block, block_rows, panel_sums, words};
use super::matrix::{Matrix, PANEL};
use super::simd::Lanes;
use crate::backend::{Entries, Logits};
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
    let x = words(cpu, rows, head.inputs, x);
    let tasks = head.panels().div_ceil(TASK_PANELS);
    // `[tasks, rows]`
    let mut partials = vec![LogSumExp::EMPTY; tasks * rows];
    let block_rows = block_rows(cpu.isa, head.inputs);
    // The targets' logits at first.
    let target_logits = Shared::new(&mut *out);
    let all = Shared::new(&mut partials);
    cpu.team.each(tasks, true, |task| {
        // SAFETY: each task has partial sums of its own, borrowed until all are done.
        let partials = unsafe { all.range(task * rows, rows) };
        let panels = task * TASK_PANELS..head.panels().min((task + 1) * TASK_PANELS);
        for first in (0..rows).step_by(block_rows) {
            let rows = first..rows.min(first + block_rows);
            for panel in panels.clone() {
                panel_sums(cpu.isa, rows.clone(), &x, head, panel, |block| {
                    for (row, logits) in block.rows.clone().zip(block.sums) {
                        for &entry in entries[row] {
                            let target = targets[entry as usize] as usize;
                            let target = target.wrapping_sub(block.output);
                            if target < block.outputs {
                                // SAFETY: an entry has one row, and its target lies in one panel, so
                                // one task writes it; `out` is borrowed until the end.
                                let place = unsafe { target_logits.range(entry as usize, 1) };
                                place[0] = logits.0[target];
                            }
                        }
                    }
                    add_logits(cpu.isa, &mut partials[block.rows.clone()], block);
                });
            }
        }
    });
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

vectorized! {
    /// More logits of some rows into their denominators.
    fn add_logits(partials: &mut [LogSumExp], block: Block<'_>) = plus_block::<S>;
}

#[inline(always)]
fn plus_block<S: Lanes>(partials: &mut [LogSumExp], block: Block<'_>) {
    for (partial, logits) in partials.iter_mut().zip(block.sums) {
        *partial = plus::<S>(*partial, &logits.0[..block.outputs]);
    }
}

/// `logits += weight · (log softmax(tuned) − log softmax(untuned))` where all three have the token, and −∞
/// elsewhere; `pair`: tuned and untuned.
pub fn add_guidance(
    cpu: &CpuBackend,
    rows: usize,
    weight: f32,
    pair: [&Logits<CpuBackend>; 2],
    logits: &mut Logits<CpuBackend>,
) {
    let total = |values: &[f32]| {
        let chunks = values.chunks(TASK_PANELS * PANEL);
        chunks.fold(LogSumExp::EMPTY, |total, chunk| log_sum_exp(cpu.isa, total, chunk)).value()
    };
    let vocab = logits.vocab;
    cpu.by_out_row(rows, rows * vocab, (&mut logits.values, vocab), |row, logits| {
        let [tuned, untuned] = pair.map(|of| &of.values[row * of.vocab..][..of.vocab]);
        let shift = total(untuned) - total(tuned);
        let common = vocab.min(tuned.len()).min(untuned.len());
        let (common, beyond) = logits.split_at_mut(common);
        for ((logit, &tuned), &untuned) in common.iter_mut().zip(tuned).zip(untuned) {
            *logit += weight * (tuned - untuned + shift);
        }
        beyond.fill(f32::NEG_INFINITY);
    });
}
