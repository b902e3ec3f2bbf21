//! Softmax attention over pages, read in place.
//!
//! A query walks through its pages in order with a running maximum and sum, so decoding a token
//! alone gives the same bits as running it inside a longer segment. A task takes rows that follow
//! one another in the batch, of whatever sequence: neighbours that have the same page (rows of one
//! prompt, all candidates in theirs, a beam's successors in what it wrote) read it once, together.

use std::ops::Range;

use rayon::prelude::*;

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::{exp, narrow};
use super::simd::{self, LANES, Lanes};
use crate::backend::{Attention, PAGE_LEN, PoolShape};
use crate::tensor::bf16;

/// Multiply-adds below which one thread does it all.
const WORTH_A_THREAD: usize = 1 << 17;

/// Queries that share a page: their sums (256 bytes for 64 channels) stay in the nearest cache.
const TASK_QUERIES: usize = 32;

/// Vectors of channels whose sums are kept in registers.
const CHUNK: usize = 4;

/// Queries that share one reading of a page's values.
const TOGETHER: usize = 4;

// A page's scores are one vector.
const _: () = assert!(PAGE_LEN == LANES);

/// What one task computes: some rows of the batch under one key/value head.
#[derive(Clone, Copy)]
struct Task {
    first_row: usize,
    rows: usize,
    head: usize,
}

pub fn attention(cpu: &CpuBackend, args: Attention<'_, CpuBackend>) {
    let heads = args.shape.heads;
    let rows = args.segments.iter().map(|segment| segment.rows).sum::<usize>();
    assert!(args.qkv.len() >= rows * heads.qkv_width(), "qkv: [rows, (q + 2 kv) * head_dim]");
    assert!(args.out.len() >= rows * heads.query_width(), "out: [rows, q * head_dim]");
    assert!(args.pool.len() >= args.shape.len(), "pool: {:?}", args.shape);
    assert!(args.tables.len() >= args.segments.len() * args.table_stride, "a table per segment");
    assert!(args.positions.len().min(args.row_segments.len()) >= rows, "positions: [rows]");
    assert!(args.window != Some(0), "a row sees itself");

    let task_rows = (TASK_QUERIES * heads.kv / heads.query).max(1);
    let tasks = |first_row: usize| {
        let rows = task_rows.min(rows - first_row);
        (0..heads.kv).map(move |head| Task { first_row, rows, head })
    };
    let tasks: Vec<Task> = (0..rows).step_by(task_rows).flat_map(tasks).collect();
    let work: usize = args
        .segments
        .iter()
        .map(|s| s.rows * (s.first_position + s.rows) * heads.query * heads.dim)
        .sum();
    let out = Shared::new(&mut args.out[..]);
    let args = Inputs {
        layer: args.layer,
        shape: args.shape,
        window: args.window,
        scale: args.scale,
        qkv: args.qkv,
        pool: args.pool,
        positions: args.positions,
        row_segments: args.row_segments,
        tables: args.tables,
        table_stride: args.table_stride,
    };
    let run = |scratch: &mut Scratch, task: Task| run_task(cpu.isa, &args, task, scratch, out);
    if work < WORTH_A_THREAD {
        let mut scratch = Scratch::default();
        tasks.into_iter().for_each(|task| run(&mut scratch, task));
    } else {
        let tasks = tasks.into_par_iter().with_max_len(1);
        cpu.pool.install(|| tasks.for_each_init(Scratch::default, run));
    }
}

/// [`Attention`] without its output.
struct Inputs<'a> {
    layer: usize,
    shape: PoolShape,
    window: Option<usize>,
    scale: f32,
    qkv: &'a [bf16],
    pool: &'a [bf16],
    positions: &'a [u32],
    row_segments: &'a [u32],
    tables: &'a [u32],
    table_stride: usize,
}

impl Inputs<'_> {
    /// A row's page of these positions.
    fn page(&self, row: usize, index: usize) -> usize {
        self.tables[self.row_segments[row] as usize * self.table_stride + index] as usize
    }

    /// Its keys, `[PAGE_LEN, dim]`, then its values, of one head.
    fn keys_and_values(&self, page: usize, head: usize) -> &[bf16] {
        let start = self.shape.offset(self.layer, page, head, 0);
        &self.pool[start..][..2 * PAGE_LEN * self.shape.heads.dim]
    }
}

/// A query on its way through the pages.
#[derive(Clone, Copy)]
struct Query {
    /// Where it begins in `qkv`.
    start: usize,
    /// The positions that it sees.
    first: usize,
    end: usize,
    /// The largest score so far.
    max: f32,
    /// Σ e^(score − max), one sum per slot of a page.
    total: [f32; LANES],
}

impl Query {
    /// The slots of a page that it sees.
    fn slots(&self, page: usize) -> Range<usize> {
        let base = page * PAGE_LEN;
        self.first.max(base) - base..self.end.min(base + PAGE_LEN).max(base) - base
    }

    /// Whether it sees any of a page.
    fn sees(&self, page: usize) -> bool {
        !self.slots(page).is_empty()
    }
}

/// Memory that a thread uses from task to task.
#[derive(Default)]
struct Scratch {
    queries: Vec<Query>,
    /// `[queries, channels / LANES]` the weighted values so far.
    sums: Vec<[f32; LANES]>,
}

vectorized! {
    /// Computes one task.
    fn run_task(inputs: &Inputs<'_>, task: Task, scratch: &mut Scratch, out: Shared<bf16>) = run::<S>;
}

#[inline(always)]
fn run<S: Lanes>(inputs: &Inputs<'_>, task: Task, scratch: &mut Scratch, out: Shared<bf16>) {
    let heads = inputs.shape.heads;
    let (dim, group, chunks) = (heads.dim, heads.query / heads.kv, heads.dim.div_ceil(LANES));
    let Scratch { queries, sums } = scratch;
    queries.clear();
    for row in task.first_row..task.first_row + task.rows {
        let end = inputs.positions[row] as usize + 1;
        let first = inputs.window.map_or(0, |window| end.saturating_sub(window));
        for query in 0..group {
            let start = row * heads.qkv_width() + (task.head * group + query) * dim;
            let (max, total) = (f32::NEG_INFINITY, [0.0; LANES]);
            queries.push(Query { start, first, end, max, total });
        }
    }
    sums.clear();
    sums.resize(queries.len() * chunks, [0.0; LANES]);

    let first = queries.iter().map(|query| query.first).min().unwrap_or(0) / PAGE_LEN;
    let end = queries.iter().map(|query| query.end).max().unwrap_or(0).div_ceil(PAGE_LEN);
    for index in first..end {
        let mut from = 0;
        while from < task.rows {
            let sees = |row: usize| queries[row * group].sees(index);
            let page = |row: usize| inputs.page(task.first_row + row, index);
            let mut to = from + 1;
            if !sees(from) {
                from = to;
                continue;
            }
            while to < task.rows && sees(to) && page(to) == page(from) {
                to += 1;
            }
            let memory = inputs.keys_and_values(page(from), task.head);
            // Pages lie anywhere, so the processor cannot guess which one is next.
            let next = if to < task.rows { (to, index) } else { (0, index + 1) };
            if next.1 < end && queries[next.0 * group].sees(next.1) {
                let next = inputs.page(task.first_row + next.0, next.1);
                for line in inputs.keys_and_values(next, task.head).chunks(2 * LANES) {
                    S::prefetch(line.as_ptr());
                }
            }
            let (queries, sums) =
                (&mut queries[from * group..to * group], &mut sums[from * group * chunks..]);
            add_page::<S>(inputs, index, memory, queries, sums);
            from = to;
        }
    }

    for (index, (query, sums)) in queries.iter().zip(sums.chunks_exact(chunks)).enumerate() {
        let (row, head) = (task.first_row + index / group, task.head * group + index % group);
        // SAFETY: each row and head belongs to one task; the output outlives all tasks.
        let out = unsafe { out.range(row * heads.query_width() + head * dim, dim) };
        let factor = 1.0 / S::load(&query.total).sum();
        for (out, sum) in out.chunks_mut(LANES).zip(sums) {
            let mut values = [0.0; LANES];
            S::load(sum).mul(S::splat(factor)).store(&mut values);
            for (out, value) in out.iter_mut().zip(values) {
                *out = narrow(value);
            }
        }
    }
}

/// Takes page `index` of these queries, all of which see some of it, into their sums,
/// `[queries, channels / LANES]`. `memory`: the page's keys, then its values.
#[inline(always)]
fn add_page<S: Lanes>(
    inputs: &Inputs<'_>,
    index: usize,
    memory: &[bf16],
    queries: &mut [Query],
    sums: &mut [[f32; LANES]],
) {
    let dim = inputs.shape.heads.dim;
    let chunks = dim.div_ceil(LANES);
    let (keys, values) = memory.split_at(PAGE_LEN * dim);
    for (some, sums) in queries.chunks_mut(TOGETHER).zip(sums.chunks_mut(TOGETHER * chunks)) {
        let mut weights = [[0.0; LANES]; TOGETHER];
        let mut rescale = [1.0; TOGETHER];
        let mut whole = some.len() == TOGETHER;
        for (i, query) in some.iter_mut().enumerate() {
            let slots = query.slots(index);
            whole &= slots == (0..PAGE_LEN);
            let channels = &inputs.qkv[query.start..][..dim];
            let scores = scores::<S>(channels, keys).mul(S::splat(inputs.scale));
            (weights[i], rescale[i]) = weigh::<S>(scores, slots, query);
        }
        if whole {
            add_values::<S, TOGETHER>(dim, values, 0..PAGE_LEN, &weights, &rescale, sums);
        } else {
            for (i, query) in some.iter().enumerate() {
                let sums = &mut sums[i * chunks..][..chunks];
                let (weights, rescale) = ([weights[i]], [rescale[i]]);
                add_values::<S, 1>(dim, values, query.slots(index), &weights, &rescale, sums);
            }
        }
    }
}

/// The query's products with the keys of a page, `keys: [PAGE_LEN, dim]`.
#[inline(always)]
fn scores<S: Lanes>(query: &[bf16], keys: &[bf16]) -> S {
    match query.len() {
        // The usual sizes as constants, which spares a bounds check per load.
        64 => scores_of::<S>(64, query, keys),
        128 => scores_of::<S>(128, query, keys),
        dim => scores_of::<S>(dim, query, keys),
    }
}

#[inline(always)]
fn scores_of<S: Lanes>(dim: usize, query: &[bf16], keys: &[bf16]) -> S {
    let (query, keys) = (&query[..dim], &keys[..PAGE_LEN * dim]);
    let mut acc = [S::splat(0.0); LANES];
    let (whole, rest) = query.as_chunks::<{ 2 * LANES }>();
    for (chunk, query) in whole.iter().enumerate() {
        let query = S::pairs(query);
        for slot in 0..LANES {
            let key = &keys[slot * dim + chunk * 2 * LANES..].as_chunks::<{ 2 * LANES }>().0[0];
            acc[slot] = acc[slot].dot(S::pairs(key), query);
        }
    }
    if !rest.is_empty() {
        let query = S::pairs(&padded(rest));
        for slot in 0..LANES {
            let key = &keys[slot * dim + dim - rest.len()..][..rest.len()];
            acc[slot] = acc[slot].dot(S::pairs(&padded(key)), query);
        }
    }
    S::sums(&acc)
}

/// A page's weights e^(score − max), 0 for slots that the query does not see, and what the
/// weights before are to be multiplied with: the maximum may have risen.
#[inline(always)]
fn weigh<S: Lanes>(mut scores: S, slots: Range<usize>, query: &mut Query) -> ([f32; LANES], f32) {
    let mut lanes = [0.0; LANES];
    let all = slots == (0..PAGE_LEN);
    if !all {
        scores.store(&mut lanes);
        lanes[..slots.start].fill(f32::NEG_INFINITY);
        lanes[slots.end..].fill(f32::NEG_INFINITY);
        scores = S::load(&lanes);
    }
    let most = scores.largest();
    let mut rescale = 1.0;
    if most > query.max {
        rescale = exp(query.max - most);
        query.max = most;
    }
    let mut weights = simd::exp(scores.sub(S::splat(query.max)));
    weights.store(&mut lanes);
    if !all {
        lanes[..slots.start].fill(0.0);
        lanes[slots.end..].fill(0.0);
        weights = S::load(&lanes);
    }
    S::load(&query.total).mul_add(S::splat(rescale), weights).store(&mut query.total);
    (lanes, rescale)
}

/// `sums = sums · rescale + Σ weight · value` over the slots, for `N` queries.
/// `values: [PAGE_LEN, dim]`, `sums: [N, dim / LANES]`.
#[inline(always)]
fn add_values<S: Lanes, const N: usize>(
    dim: usize,
    values: &[bf16],
    slots: Range<usize>,
    weights: &[[f32; LANES]],
    rescale: &[f32],
    sums: &mut [[f32; LANES]],
) {
    let whole = dim / LANES;
    let mut chunk = 0;
    while chunk < whole {
        let count = CHUNK.min(whole - chunk);
        let slots = slots.clone();
        match count {
            1 => add_chunks::<S, N, 1>(dim, values, chunk, slots, weights, rescale, sums),
            2 => add_chunks::<S, N, 2>(dim, values, chunk, slots, weights, rescale, sums),
            3 => add_chunks::<S, N, 3>(dim, values, chunk, slots, weights, rescale, sums),
            _ => add_chunks::<S, N, CHUNK>(dim, values, chunk, slots, weights, rescale, sums),
        }
        chunk += count;
    }
    let rest = dim % LANES;
    if rest > 0 {
        for query in 0..N {
            let sum = &mut sums[query * (whole + 1) + whole];
            let mut acc = S::load(sum).mul(S::splat(rescale[query]));
            for slot in slots.clone() {
                let value = S::widen(&padded(&values[(slot + 1) * dim - rest..][..rest]));
                acc = S::splat(weights[query][slot]).mul_add(value, acc);
            }
            acc.store(sum);
        }
    }
}

/// [`add_values`] for `COUNT` vectors of channels from `chunk` on.
#[inline(always)]
fn add_chunks<S: Lanes, const N: usize, const COUNT: usize>(
    dim: usize,
    values: &[bf16],
    chunk: usize,
    slots: Range<usize>,
    weights: &[[f32; LANES]],
    rescale: &[f32],
    sums: &mut [[f32; LANES]],
) {
    let stride = dim.div_ceil(LANES);
    let mut acc = [[S::splat(0.0); COUNT]; N];
    for query in 0..N {
        for at in 0..COUNT {
            let sum = &sums[query * stride + chunk + at];
            acc[query][at] = S::load(sum).mul(S::splat(rescale[query]));
        }
    }
    for slot in slots {
        let value = &values[slot * dim + chunk * LANES..][..COUNT * LANES];
        let value = value.as_chunks::<LANES>().0;
        for at in 0..COUNT {
            let value = S::widen(&value[at]);
            for query in 0..N {
                acc[query][at] = S::splat(weights[query][slot]).mul_add(value, acc[query][at]);
            }
        }
    }
    for query in 0..N {
        for at in 0..COUNT {
            acc[query][at].store(&mut sums[query * stride + chunk + at]);
        }
    }
}

/// The last few numbers, and zeros.
#[inline(always)]
fn padded<const N: usize>(rest: &[bf16]) -> [bf16; N] {
    let mut out = [bf16::ZERO; N];
    match rest.len() {
        // The usual length, for which no call is needed.
        LANES => out[..LANES].copy_from_slice(rest),
        len => out[..len].copy_from_slice(rest),
    }
    out
}
