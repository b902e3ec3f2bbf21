//! Softmax attention over pages, read in place.
//!
//! A query walks through its pages in order with a running maximum and sum, so decoding a token
//! alone gives the same bits as running it inside a longer segment. A task takes rows that follow
//! one another in the batch, of whatever sequence: neighbours that have the same page (rows of one
//! prompt, all candidates in theirs, a beam's successors in what it wrote) read it once, together.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::{exp, narrow};
use super::products::{self, MOST_QUERIES, OnTiles, Products, Softmax};
use super::simd::{self, LANES, Lanes};
use super::tiles::PortableTiles;
use super::{CpuBackend, Isa};
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
    let run = |scratch: &mut Scratch, task: usize| {
        let task = tasks[task];
        let queries = args.starts(task).map(|start| &args.qkv[start..][..heads.dim]);
        match cpu.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if args.fit_tiles() => {
                let mut products = OnTiles::<Amx>::new(heads.dim, queries);
                run_task(cpu.isa, &args, task, Some(&mut products), scratch, out);
            }
            Isa::PortableTiles if args.fit_tiles() => {
                let mut products = OnTiles::<PortableTiles>::new(heads.dim, queries);
                run_task(cpu.isa, &args, task, Some(&mut products), scratch, out);
            }
            _ => run_task(cpu.isa, &args, task, None, scratch, out),
        }
    };
    cpu.team.each_with(tasks.len(), work >= WORTH_A_THREAD, Scratch::default, run);
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

    /// Where the queries of a task begin in `qkv`, in the rows' order and in each by heads.
    fn starts(&self, task: Task) -> impl ExactSizeIterator<Item = usize> + use<> {
        let heads = self.shape.heads;
        let group = heads.query / heads.kv;
        (0..task.rows * group).map(move |index| {
            let (row, head) = (task.first_row + index / group, task.head * group + index % group);
            row * heads.qkv_width() + head * heads.dim
        })
    }

    /// Whether queries and keys are what tiles can hold.
    fn fit_tiles(&self) -> bool {
        let heads = self.shape.heads;
        products::fit(heads.dim) && heads.query / heads.kv <= MOST_QUERIES
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
    softmax: Softmax,
}

vectorized! {
    /// Computes one task.
    fn run_task(
        inputs: &Inputs<'_>,
        task: Task,
        products: Option<&mut dyn Products>,
        scratch: &mut Scratch,
        out: Shared<bf16>,
    ) = run::<S>;
}

#[inline(always)]
fn run<S: Lanes>(
    inputs: &Inputs<'_>,
    task: Task,
    mut products: Option<&mut dyn Products>,
    scratch: &mut Scratch,
    out: Shared<bf16>,
) {
    let heads = inputs.shape.heads;
    let (dim, group, chunks) = (heads.dim, heads.query / heads.kv, heads.dim.div_ceil(LANES));
    let Scratch { queries, sums, softmax } = scratch;
    queries.clear();
    for (index, start) in inputs.starts(task).enumerate() {
        let end = inputs.positions[task.first_row + index / group] as usize + 1;
        let first = inputs.window.map_or(0, |window| end.saturating_sub(window));
        let (max, total) = (f32::NEG_INFINITY, [0.0; LANES]);
        queries.push(Query { start, first, end, max, total });
    }
    sums.clear();
    sums.resize(queries.len() * chunks, [0.0; LANES]);
    if products.is_some() {
        *softmax = Softmax::default();
    }

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
            let some = from * group..to * group;
            let sums = &mut sums[some.start * chunks..some.end * chunks];
            if let Some(products) = &mut products {
                products.multiply(some.clone(), &memory[..PAGE_LEN * dim], &mut softmax.weights);
                let slots = |query: usize| queries[query].slots(index);
                softmax.weigh::<S>(some.clone(), inputs.scale, slots);
                let values = &memory[PAGE_LEN * dim..];
                let queries = (some.start, &queries[some]);
                add_weighed_page::<S>(index, dim, values, softmax, queries, sums);
            } else {
                add_page::<S>(inputs, index, memory, &mut queries[some], sums);
            }
            from = to;
        }
    }

    for (index, (query, sums)) in queries.iter().zip(sums.chunks_exact(chunks)).enumerate() {
        let (row, head) = (task.first_row + index / group, task.head * group + index % group);
        // SAFETY: each row and head belongs to one task; the output outlives all tasks.
        let out = unsafe { out.range(row * heads.query_width() + head * dim, dim) };
        let total = match &products {
            Some(_) => softmax.total::<S>(index),
            None => S::load(&query.total).sum(),
        };
        let factor = S::splat(1.0 / total);
        for (out, sum) in out.chunks_mut(LANES).zip(sums) {
            let mut values = [0.0; LANES];
            S::load(sum).mul(factor).store(&mut values);
            let mut halves = [bf16::ZERO; LANES];
            for (half, value) in halves.iter_mut().zip(values) {
                *half = narrow(value);
            }
            out.copy_from_slice(&halves[..out.len()]);
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
    let (keys, values) = memory.split_at(PAGE_LEN * dim);
    let sums = sums.chunks_mut(TOGETHER * dim.div_ceil(LANES));
    for (queries, sums) in queries.chunks_mut(TOGETHER).zip(sums) {
        let mut weights = [[0.0; LANES]; TOGETHER];
        let mut rescale = [1.0; TOGETHER];
        for (i, query) in queries.iter_mut().enumerate() {
            let channels = &inputs.qkv[query.start..][..dim];
            let scores = scores::<S>(channels, keys).mul(S::splat(inputs.scale));
            (weights[i], rescale[i]) = weigh::<S>(scores, query.slots(index), query);
        }
        let weight = |query: usize, slot: usize| weights[query][slot];
        add_values_of::<S>(index, dim, values, queries, weight, |query| rescale[query], sums);
    }
}

/// As [`add_page`], for queries whose weights are there already; `first`: which of the task's they
/// begin with.
#[inline(always)]
fn add_weighed_page<S: Lanes>(
    index: usize,
    dim: usize,
    values: &[bf16],
    softmax: &Softmax,
    (first, queries): (usize, &[Query]),
    sums: &mut [[f32; LANES]],
) {
    let sums = sums.chunks_mut(TOGETHER * dim.div_ceil(LANES));
    for (group, (queries, sums)) in queries.chunks(TOGETHER).zip(sums).enumerate() {
        let first = first + group * TOGETHER;
        let weight = |query: usize, slot: usize| softmax.weights[slot].0[first + query];
        let rescale = |query: usize| softmax.rescale.0[first + query];
        add_values_of::<S>(index, dim, values, queries, weight, rescale, sums);
    }
}

/// The values of page `index`, weighted, into the sums of up to [`TOGETHER`] queries.
#[inline(always)]
fn add_values_of<S: Lanes>(
    index: usize,
    dim: usize,
    values: &[bf16],
    queries: &[Query],
    weight: impl Fn(usize, usize) -> f32,
    rescale: impl Fn(usize) -> f32,
    sums: &mut [[f32; LANES]],
) {
    let chunks = dim.div_ceil(LANES);
    let whole = queries.iter().all(|query| query.slots(index) == (0..PAGE_LEN));
    if whole && queries.len() == TOGETHER {
        return add_values::<S, TOGETHER>(dim, values, 0..PAGE_LEN, weight, rescale, sums);
    }
    for (i, (query, sums)) in queries.iter().zip(sums.chunks_mut(chunks)).enumerate() {
        let (weight, rescale) = (|_, slot| weight(i, slot), |_| rescale(i));
        add_values::<S, 1>(dim, values, query.slots(index), weight, rescale, sums);
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

/// `sums = sums · rescale + Σ weight · value` over the slots, for `N` queries, `weight(query, slot)`.
/// `values: [PAGE_LEN, dim]`, `sums: [N, dim / LANES]`.
#[inline(always)]
fn add_values<S: Lanes, const N: usize>(
    dim: usize,
    values: &[bf16],
    slots: Range<usize>,
    weight: impl Fn(usize, usize) -> f32,
    rescale: impl Fn(usize) -> f32,
    sums: &mut [[f32; LANES]],
) {
    let whole = dim / LANES;
    let mut chunk = 0;
    while chunk < whole {
        let count = CHUNK.min(whole - chunk);
        let slots = slots.clone();
        match count {
            1 => add_chunks::<S, N, 1>(dim, values, chunk, slots, &weight, &rescale, sums),
            2 => add_chunks::<S, N, 2>(dim, values, chunk, slots, &weight, &rescale, sums),
            3 => add_chunks::<S, N, 3>(dim, values, chunk, slots, &weight, &rescale, sums),
            _ => add_chunks::<S, N, CHUNK>(dim, values, chunk, slots, &weight, &rescale, sums),
        }
        chunk += count;
    }
    let rest = dim % LANES;
    if rest > 0 {
        for query in 0..N {
            let sum = &mut sums[query * (whole + 1) + whole];
            let mut acc = S::load(sum).mul(S::splat(rescale(query)));
            for slot in slots.clone() {
                let value = S::widen(&padded(&values[(slot + 1) * dim - rest..][..rest]));
                acc = S::splat(weight(query, slot)).mul_add(value, acc);
            }
            acc.store(sum);
        }
    }
}

/// [`add_values`] for `COUNT` vectors of channels from `chunk` on.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Indices, which keep the sums in registers.
fn add_chunks<S: Lanes, const N: usize, const COUNT: usize>(
    dim: usize,
    values: &[bf16],
    chunk: usize,
    slots: Range<usize>,
    weight: impl Fn(usize, usize) -> f32,
    rescale: impl Fn(usize) -> f32,
    sums: &mut [[f32; LANES]],
) {
    let stride = dim.div_ceil(LANES);
    let mut acc = [[S::splat(0.0); COUNT]; N];
    for query in 0..N {
        for at in 0..COUNT {
            let sum = &sums[query * stride + chunk + at];
            acc[query][at] = S::load(sum).mul(S::splat(rescale(query)));
        }
    }
    for slot in slots {
        let value = &values[slot * dim + chunk * LANES..][..COUNT * LANES];
        let value = value.as_chunks::<LANES>().0;
        for at in 0..COUNT {
            let value = S::widen(&value[at]);
            for query in 0..N {
                acc[query][at] = S::splat(weight(query, slot)).mul_add(value, acc[query][at]);
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
