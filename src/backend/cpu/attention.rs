//! Softmax attention over pages, read in place.
//!
//! A row's scores, maximum, exponentials, sum and weighted values run over positions in order,
//! so decoding a token alone gives the same bits as running it inside a longer segment.

use rayon::prelude::*;

use super::CpuBackend;
use super::buffer::Shared;
use super::isa::vectorized;
use super::math::{dot, exp, max, narrow, sum, widen};
use crate::backend::{Attention, PAGE_LEN, Segment};
use crate::tensor::bf16;

/// Multiply-adds below which one thread does it all.
const WORTH_A_THREAD: usize = 1 << 17;

/// What one task computes: some rows of a segment under one key/value head.
#[derive(Clone, Copy)]
struct Task {
    segment: usize,
    first_row: usize,
    rows: usize,
    head: usize,
}

/// Rows of a segment in one task.
const TASK_ROWS: usize = 32;

pub fn attention(cpu: &CpuBackend, args: Attention<'_, CpuBackend>) {
    let heads = args.shape.heads;
    let rows = args.segments.iter().map(|segment| segment.rows).sum::<usize>();
    assert!(args.qkv.len() >= rows * heads.qkv_width(), "qkv: [rows, (q + 2 kv) * head_dim]");
    assert!(args.out.len() >= rows * heads.query_width(), "out: [rows, q * head_dim]");
    assert!(args.pool.len() >= args.shape.len(), "pool: {:?}", args.shape);
    assert!(args.tables.len() >= args.segments.len() * args.table_stride, "a table per segment");

    let tasks: Vec<Task> = args
        .segments
        .iter()
        .enumerate()
        .flat_map(|(index, segment)| {
            let (first_row, end) = (segment.first_row, segment.first_row + segment.rows);
            (first_row..end).step_by(TASK_ROWS).flat_map(move |first_row| {
                let rows = TASK_ROWS.min(end - first_row);
                (0..heads.kv).map(move |head| Task { segment: index, first_row, rows, head })
            })
        })
        .collect();
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
        segments: args.segments,
        tables: args.tables,
        table_stride: args.table_stride,
    };
    let run = |scratch: &mut Scratch, task: Task| run_task(cpu.isa, &args, task, scratch, out);
    if work < WORTH_A_THREAD {
        let mut scratch = Scratch::default();
        tasks.into_iter().for_each(|task| run(&mut scratch, task));
    } else {
        cpu.pool.install(|| tasks.into_par_iter().for_each_init(Scratch::default, run));
    }
}

/// Memory that a thread uses from task to task.
#[derive(Default)]
struct Scratch {
    /// `[group, head_dim]` the queries that share a key/value head.
    queries: Vec<f32>,
    /// `[group, positions]` their scores, then their weights.
    scores: Vec<f32>,
    /// `[group, head_dim]`
    sums: Vec<f32>,
}

/// [`Attention`] without its output.
struct Inputs<'a> {
    layer: usize,
    shape: crate::backend::PoolShape,
    window: Option<usize>,
    scale: f32,
    qkv: &'a [bf16],
    pool: &'a [bf16],
    segments: &'a [Segment],
    tables: &'a [u32],
    table_stride: usize,
}

impl Inputs<'_> {
    #[inline(always)]
    fn run(&self, task: Task, scratch: &mut Scratch, out: Shared<bf16>) {
        let heads = self.shape.heads;
        let group = heads.query / heads.kv;
        let segment = self.segments[task.segment];
        let table = &self.tables[task.segment * self.table_stride..][..self.table_stride];
        for row in task.first_row..task.first_row + task.rows {
            let position = segment.first_position + (row - segment.first_row);
            let from = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let count = position + 1 - from;
            let first = row * heads.qkv_width() + task.head * group * heads.dim;
            scratch.queries.clear();
            scratch.queries.extend(
                self.qkv[first..first + group * heads.dim].iter().map(|&q| widen(q) * self.scale),
            );
            scratch.scores.clear();
            scratch.scores.resize(group * count, 0.0);
            scratch.sums.clear();
            scratch.sums.resize(group * heads.dim, 0.0);

            for at in 0..count {
                let key = self.vector(table, from + at, task.head, 0);
                for (g, query) in scratch.queries.chunks_exact(heads.dim).enumerate() {
                    scratch.scores[g * count + at] = dot(query, key);
                }
            }
            for scores in scratch.scores.chunks_exact_mut(count) {
                let most = max(scores);
                for score in scores.iter_mut() {
                    *score = exp(*score - most);
                }
                let total = 1.0 / sum(scores, |weight| weight);
                for score in scores.iter_mut() {
                    *score *= total;
                }
            }
            for at in 0..count {
                let value = self.vector(table, from + at, task.head, 1);
                for (g, sums) in scratch.sums.chunks_exact_mut(heads.dim).enumerate() {
                    let weight = scratch.scores[g * count + at];
                    for (sum, &value) in sums.iter_mut().zip(value) {
                        *sum += weight * widen(value);
                    }
                }
            }
            let first = row * heads.query_width() + task.head * group * heads.dim;
            // SAFETY: each row and head belongs to one task; the output outlives all tasks.
            let out = unsafe { out.range(first, group * heads.dim) };
            for (out, &sum) in out.iter_mut().zip(&scratch.sums) {
                *out = narrow(sum);
            }
        }
    }

    /// The key (`which` = 0) or value (1) at a position, `[head_dim]`.
    #[inline(always)]
    fn vector(&self, table: &[u32], position: usize, head: usize, which: usize) -> &[bf16] {
        let page = table[position / PAGE_LEN] as usize;
        let dim = self.shape.heads.dim;
        let start = self.shape.offset(self.layer, page, head, which) + position % PAGE_LEN * dim;
        &self.pool[start..start + dim]
    }
}

vectorized! {
    /// Computes one task.
    fn run_task(inputs: &Inputs<'_>, task: Task, scratch: &mut Scratch, out: Shared<bf16>) = Inputs::run;
}
