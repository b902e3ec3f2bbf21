//! Picking a token without sorting the vocabulary.

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::max;
use super::simd::{self, LANES, Lanes};
use crate::backend::{NO_TOKEN, SampleRow};

/// Logits below which one thread does it all.
const WORTH_A_THREAD: usize = 1 << 14;

/// Weights whose sum is looked at before the weights themselves.
const BLOCK: usize = 256;

/// Bits of a weight (at most 1.0) that do not matter for which of 8,128 buckets it falls into.
const BUCKET_BITS: u32 = 17;

/// Memory that a thread uses from row to row.
#[derive(Default)]
struct Scratch {
    /// The kept tokens in order of their ids; empty if all are kept.
    tokens: Vec<u32>,
    /// e^((logit − max) / temperature) of the kept tokens.
    weights: Vec<f32>,
    /// The weights' sums, block by block.
    sums: Vec<f64>,
    /// The weights' sum in each bucket, heaviest first.
    buckets: Vec<f64>,
}

/// Picks a token for each of `rows` from its row of `logits: [_, vocab]`.
pub fn sample(
    cpu: &CpuBackend,
    rows: &[SampleRow],
    vocab: usize,
    logits: &[f32],
    tokens: &mut [u32],
) {
    assert!(vocab > 0 && tokens.len() >= rows.len(), "tokens: [rows]");
    let tokens = Shared::new(&mut tokens[..rows.len()]);
    let run = |scratch: &mut Scratch, index: usize| {
        let row = &rows[index];
        let logits = &logits[row.logits as usize * vocab..][..vocab];
        // SAFETY: one task has one row; `tokens` is borrowed until the end.
        unsafe { tokens.range(index, 1)[0] = pick_token(cpu.isa, row, logits, scratch) };
    };
    cpu.team.each_with(rows.len(), rows.len() * vocab >= WORTH_A_THREAD, Scratch::default, run);
}

vectorized! {
    /// One row's token.
    fn pick_token(row: &SampleRow, logits: &[f32], scratch: &mut Scratch) -> u32 = pick::<S>;
}

#[inline(always)]
fn pick<S: Lanes>(row: &SampleRow, logits: &[f32], scratch: &mut Scratch) -> u32 {
    let most = max(logits);
    if !most.is_finite() || has_nan(logits) {
        return NO_TOKEN;
    }
    if row.temperature == 0.0 {
        return logits.iter().position(|&logit| logit == most).expect("it is one of them") as u32;
    }
    let Scratch { tokens, weights, sums, buckets } = scratch;
    tokens.clear();
    weights.clear();
    let k = row.top_k as usize;
    if 0 < k && k < logits.len() {
        keep_largest(logits, k, tokens);
        weights.extend(tokens.iter().map(|&token| logits[token as usize]));
    } else {
        weights.extend_from_slice(logits);
    }
    // The sums are taken while a block is near.
    sums.clear();
    for block in weights.chunks_mut(BLOCK) {
        weigh::<S>(block, most, row.temperature);
        sums.push(sum(block));
    }
    if row.top_p < 1.0 {
        keep_nucleus(weights, f64::from(row.top_p), buckets);
        sums.clear();
        sums.extend(weights.chunks(BLOCK).map(sum));
    }
    let index = draw(weights, sums, f64::from(row.draw.uniform()));
    tokens.get(index).copied().unwrap_or(index as u32)
}

/// Makes e^((logit − most) / temperature) of logits.
#[inline(always)]
fn weigh<S: Lanes>(logits: &mut [f32], most: f32, temperature: f32) {
    let lanes = |logits: &mut [f32; LANES]| {
        for logit in logits.iter_mut() {
            *logit = (*logit - most) / temperature;
        }
        let mut weights = [0.0; LANES];
        simd::exp(S::load(logits)).store(&mut weights);
        for (logit, weight) in logits.iter_mut().zip(weights) {
            // Exactly nothing for what cannot be drawn.
            *logit = if *logit > -87.0 { weight } else { 0.0 };
        }
    };
    let (whole, rest) = logits.as_chunks_mut();
    whole.iter_mut().for_each(lanes);
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        lanes(&mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

#[inline(always)]
fn has_nan(values: &[f32]) -> bool {
    // No early end, which would keep the loop from being vectorised.
    values.iter().fold(false, |nan, value| nan | value.is_nan())
}

/// The tokens with the `k` largest logits and those tied with the last of them, in order of ids.
///
/// Candidates above a rising bound are collected, and thinned out whenever there are too many.
#[inline(always)]
fn keep_largest(logits: &[f32], k: usize, tokens: &mut Vec<u32>) {
    let mut room = (4 * k).max(256);
    // −∞ is never kept.
    let mut bound = f32::MIN;
    let thin_out = |tokens: &mut Vec<u32>| {
        if tokens.len() <= k {
            return f32::MIN;
        }
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]);
        let bound = logits[*tokens.select_nth_unstable_by(k - 1, order).1 as usize];
        tokens.retain(|&token| logits[token as usize] >= bound);
        bound
    };
    for (chunk, values) in logits.chunks(LANES).enumerate() {
        // One test for all: after the first few, nearly all chunks fail it.
        if values.iter().fold(false, |any, &value| any | (value >= bound)) {
            let found = values.iter().enumerate().filter(|&(_, &value)| value >= bound);
            tokens.extend(found.map(|(lane, _)| (chunk * LANES + lane) as u32));
            if tokens.len() >= room {
                bound = thin_out(tokens);
                // Many may be tied.
                room = room.max(2 * tokens.len());
            }
        }
    }
    thin_out(tokens);
    tokens.sort_unstable();
}

/// The sum in f64, in eight interleaved partial sums.
#[inline(always)]
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (whole, rest) = weights.as_chunks::<8>();
    for chunk in whole {
        for lane in 0..8 {
            lanes[lane] += f64::from(chunk[lane]);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

/// Sets to 0 all but the heaviest weights that together reach `top_p` of the mass (Holtzman et
/// al., arXiv 1904.09751); on a tie the lower index stays.
///
/// The weights' bits are in the weights' order, so buckets by their first bits are, too: only
/// the bucket in which the mass is reached has to be sorted.
#[inline(always)]
fn keep_nucleus(weights: &mut [f32], top_p: f64, buckets: &mut Vec<f64>) {
    let bucket =
        |weight: f32| (1.0f32.to_bits().saturating_sub(weight.to_bits()) >> BUCKET_BITS) as usize;
    let total: f64 = weights.chunks(BLOCK).map(sum).sum();
    let mass = top_p * total;
    // All tokens lighter than this weigh less than what is left over, so none of them is needed.
    let negligible = ((total - mass) / weights.len() as f64) as f32;
    buckets.clear();
    buckets.resize(bucket(0.0) + 1, 0.0);
    for &weight in weights.iter().filter(|&&weight| weight >= negligible) {
        buckets[bucket(weight)] += f64::from(weight);
    }
    let mut running = 0.0;
    let last = buckets.iter().position(|sum| {
        let reached = running + sum >= mass;
        running += if reached { 0.0 } else { *sum };
        reached
    });
    // Only rounding can leave the mass unreached.
    let Some(last) = last else { return };
    let candidates = weights.iter().enumerate();
    let mut candidates: Vec<(usize, f32)> = candidates
        .map(|(index, &weight)| (index, weight))
        .filter(|&(_, weight)| weight >= negligible && bucket(weight) == last)
        .collect();
    candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for weight in weights.iter_mut() {
        if bucket(*weight) >= last {
            *weight = 0.0;
        }
    }
    // The heaviest token stays even for a top_p of 0.
    for (nth, (index, weight)) in candidates.into_iter().enumerate() {
        if running >= mass && (nth > 0 || last > 0) {
            break;
        }
        weights[index] = weight;
        running += f64::from(weight);
    }
}

/// The first index at which the running sum exceeds `uniform` times the whole; `sums`: each block's.
#[inline(always)]
fn draw(weights: &[f32], sums: &[f64], uniform: f64) -> usize {
    let target = uniform * sums.iter().sum::<f64>();
    let mut running = 0.0;
    let mut start = 0;
    for (block, sum) in weights.chunks(BLOCK).zip(sums) {
        let next = running + sum;
        if next > target {
            break;
        }
        running = next;
        start += block.len();
    }
    let mut last = 0;
    for (index, &weight) in weights.iter().enumerate().skip(start) {
        running += f64::from(weight);
        if weight > 0.0 {
            last = index;
            if running > target {
                return index;
            }
        }
    }
    // Only rounding leads here.
    last
}
