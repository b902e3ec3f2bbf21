//! Picking a token without sorting the vocabulary.

use rayon::prelude::*;

use super::CpuBackend;
use super::isa::vectorized;
use super::math::exp;
use crate::backend::SampleRow;

/// Picks a token for each row of `logits: [rows, vocab]`.
pub fn sample(
    cpu: &CpuBackend,
    rows: &[SampleRow],
    vocab: usize,
    logits: &[f32],
    tokens: &mut [u32],
) {
    assert!(vocab > 0 && logits.len() >= rows.len() * vocab, "logits: [rows, vocab]");
    assert!(tokens.len() >= rows.len(), "tokens: [rows]");
    let run = |((row, logits), token): ((&SampleRow, &[f32]), &mut u32)| {
        *token = pick_token(cpu.isa, row, logits);
    };
    let work = (rows, logits.par_chunks(vocab), tokens);
    if rows.len() * vocab < 1 << 14 {
        rows.iter().zip(logits.chunks(vocab)).zip(work.2).for_each(run);
    } else {
        cpu.pool.install(|| rows.par_iter().zip(work.1).zip(work.2).for_each(run));
    }
}

vectorized! {
    /// One row's token.
    fn pick_token(row: &SampleRow, logits: &[f32]) -> u32 = pick;
}

#[inline(always)]
fn pick(row: &SampleRow, logits: &[f32]) -> u32 {
    if row.temperature == 0.0 {
        return argmax(logits);
    }
    let threshold = match row.top_k as usize {
        0 => f32::NEG_INFINITY,
        k if k >= logits.len() => f32::NEG_INFINITY,
        k => kth_largest(logits, k),
    };
    // Token ids in order, with their weight e^((logit − max) / temperature).
    let most = super::math::max(logits);
    let mut kept: Vec<(u32, f32)> =
        Vec::with_capacity(if threshold.is_finite() { 64 } else { logits.len() });
    for (token, &logit) in logits.iter().enumerate() {
        if logit >= threshold && logit > f32::NEG_INFINITY {
            kept.push((token as u32, exp((logit - most) / row.temperature)));
        }
    }
    if row.top_p < 1.0 {
        keep_nucleus(&mut kept, row.top_p);
    }
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let target = f64::from(row.draw.uniform()) * total;
    let mut running = 0.0;
    for &(token, weight) in &kept {
        running += f64::from(weight);
        if running > target {
            return token;
        }
    }
    // Only rounding, or logits that are not numbers, lead here.
    kept.last().map_or_else(|| argmax(logits), |&(token, _)| token)
}

/// The lowest id of the largest logit, ignoring NaN.
#[inline(always)]
fn argmax(logits: &[f32]) -> u32 {
    let most = super::math::max(logits);
    logits.iter().position(|&logit| logit == most).unwrap_or(0) as u32
}

/// The k-th largest value: candidates above a rising bound are collected, and thinned out
/// whenever there are too many.
#[inline(always)]
fn kth_largest(values: &[f32], k: usize) -> f32 {
    let room = (4 * k).max(256);
    let mut best: Vec<f32> = Vec::with_capacity(room + 16);
    let mut bound = f32::NEG_INFINITY;
    let thin_out = |best: &mut Vec<f32>| {
        best.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        best.truncate(k);
        best[k - 1]
    };
    for chunk in values.chunks(16) {
        // One test for sixteen values: after the first few, nearly all chunks fail it.
        if chunk.iter().any(|&value| value > bound) {
            best.extend(chunk.iter().copied().filter(|&value| value > bound));
            if best.len() >= room {
                bound = thin_out(&mut best);
            }
        }
    }
    if best.len() < k {
        // Fewer than k values above −∞: everything that is a number stays.
        return f32::NEG_INFINITY;
    }
    thin_out(&mut best)
}

/// Drops all but the most probable tokens that together reach `top_p` of the mass (Holtzman et
/// al., arXiv 1904.09751); on a tie the lower id stays.
fn keep_nucleus(kept: &mut Vec<(u32, f32)>, top_p: f32) {
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let mass = f64::from(top_p) * total;
    // All tokens lighter than this weigh less than what is left over, so none of them is needed.
    let negligible = (total - mass) / kept.len() as f64;
    let mut order: Vec<(u32, f32)> =
        kept.iter().copied().filter(|&(_, weight)| f64::from(weight) >= negligible).collect();
    order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut running = 0.0;
    let needed = order.iter().take_while(|(_, weight)| {
        let before = running;
        running += f64::from(*weight);
        before < mass
    });
    let count = needed.count().max(1);
    order.truncate(count);
    order.sort_unstable_by_key(|&(token, _)| token);
    *kept = order;
}
