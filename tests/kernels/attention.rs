use std::collections::HashSet;
use std::ops::Range;

use crate::harness::*;
use trimtab::backend::{Attention, Backend, Heads, PAGE_LEN, PoolShape, Segment};
use trimtab::tensor::bf16;

/// Segments as (first position, rows).
struct Case {
    heads: Heads,
    window: Option<usize>,
    segments: Vec<(usize, usize)>,
}

struct Inputs {
    shape: PoolShape,
    qkv: Vec<bf16>,
    pool: Vec<bf16>,
    segments: Vec<Segment>,
    positions: Vec<u32>,
    row_segments: Vec<u32>,
    tables: Vec<u32>,
    table_stride: usize,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut random = Random::new(case.segments.len() as u64 * 31 + case.heads.dim as u64);
        let needed = |&(start, rows): &(usize, usize)| (start + rows).div_ceil(PAGE_LEN);
        let table_stride = case.segments.iter().map(needed).max().unwrap();
        let pages = case.segments.iter().map(needed).sum::<usize>() + 3;
        let shape = PoolShape { layers: 2, pages, heads: case.heads };
        // Pages in any order, so that neighbours in a sequence are none in memory.
        let mut free = random.shuffled(pages).into_iter();
        let (mut tables, mut segments) = (Vec::new(), Vec::new());
        let (mut positions, mut row_segments) = (Vec::new(), Vec::new());
        for (index, &(start, rows)) in case.segments.iter().enumerate() {
            let table = tables.len();
            tables.extend(free.by_ref().take(needed(&(start, rows))));
            tables.resize(table + table_stride, 0);
            segments.push(Segment { first_row: positions.len(), rows, first_position: start });
            positions.extend((start..start + rows).map(|position| position as u32));
            row_segments.extend(vec![index as u32; rows]);
        }
        let qkv = random.halves(positions.len() * case.heads.qkv_width(), 2.0);
        let pool = random.halves(shape.len(), 1.0);
        Self { shape, qkv, pool, segments, positions, row_segments, tables, table_stride }
    }

    /// Segments of one family: the first `pages` pages of `from` become those of `to` too.
    fn share(&mut self, from: usize, to: usize, pages: usize) {
        let (from, to) = (from * self.table_stride, to * self.table_stride);
        self.tables.copy_within(from..from + pages, to);
    }

    /// Some rows of one segment as a batch of their own, over the same pool.
    fn only(&self, segment: usize, rows: Range<usize>) -> Self {
        let Segment { first_row, first_position, .. } = self.segments[segment];
        let width = self.shape.heads.qkv_width();
        let all = first_row + rows.start..first_row + rows.end;
        let first_position = first_position + rows.start;
        Self {
            shape: self.shape,
            qkv: self.qkv[all.start * width..all.end * width].to_vec(),
            pool: self.pool.clone(),
            segments: vec![Segment { first_row: 0, rows: rows.len(), first_position }],
            positions: self.positions[all].to_vec(),
            row_segments: vec![0; rows.len()],
            tables: self.tables[segment * self.table_stride..][..self.table_stride].to_vec(),
            table_stride: self.table_stride,
        }
    }

    /// The pages that a segment's rows see.
    fn pages(&self, segment: usize, window: Option<usize>) -> &[u32] {
        let Segment { rows, first_position, .. } = self.segments[segment];
        let first = window.map_or(0, |window| (first_position + 1).saturating_sub(window));
        let table = &self.tables[segment * self.table_stride..][..self.table_stride];
        &table[first / PAGE_LEN..(first_position + rows).div_ceil(PAGE_LEN)]
    }

    /// Fills the values (and keys, if `keys`) of one slot.
    fn fill(&mut self, page: u32, offset: usize, keys: bool, number: bf16) {
        let Heads { kv, dim, .. } = self.shape.heads;
        for head in 0..kv {
            for which in if keys { 0..2 } else { 1..2 } {
                let start = self.shape.offset(1, page as usize, head, which);
                self.pool[start + offset * dim..][..dim].fill(number);
            }
        }
    }
}

/// A prompt of three pages and candidates of it, some of which share a fourth page, as beams do;
/// two strangers among them. All end in different places, some with several rows.
fn family(heads: Heads, window: Option<usize>, longer: usize) -> (Case, Inputs) {
    let segments = [(70, 1), (75, 1), (0, 1), (64, 2), (49, 1), (20, 3), (79, 1), (98, 2)];
    let segments =
        segments.map(|(start, rows)| (start + if start < 49 { 0 } else { longer }, rows));
    let case = Case { heads, window, segments: segments.to_vec() };
    let mut inputs = Inputs::new(&case);
    let prompt = 3 + longer / PAGE_LEN;
    for (candidate, pages) in [(1, 4), (3, 4), (4, 3), (6, 3), (7, 4)] {
        inputs.share(if candidate == 7 { 6 } else { 0 }, candidate, prompt + pages - 3);
    }
    (case, inputs)
}

/// Heads of every size of tile and register file: groups of 1, 3, 4, 7, 8 and 12.
const FAMILIES: [(usize, usize, usize); 12] = [
    (1, 1, 8),
    (4, 4, 64),
    (4, 4, 128),
    (6, 2, 96),
    (3, 1, 5),
    (4, 1, 80),
    (14, 2, 24),
    (16, 2, 128),
    (8, 1, 64),
    (8, 2, 256),
    (12, 1, 40),
    (3, 3, 200),
];

fn run<B: Backend>(backend: &B, case: &Case, inputs: &Inputs) -> Vec<bf16> {
    let rows = inputs.positions.len();
    let mut out = upload(backend, &vec![bf16::ONE; (rows + 1) * case.heads.query_width()]);
    backend
        .attention(Attention {
            layer: 1,
            shape: inputs.shape,
            window: case.window,
            scale: 0.3,
            qkv: &upload(backend, &inputs.qkv),
            pool: &upload(backend, &inputs.pool),
            segments: &inputs.segments,
            positions: &upload(backend, &inputs.positions),
            row_segments: &upload(backend, &inputs.row_segments),
            tables: &upload(backend, &inputs.tables),
            table_stride: inputs.table_stride,
            out: &mut out,
        })
        .unwrap();
    download(backend, &out)
}

/// Goal: head sizes, grouped queries, ragged segments that begin and end within pages, windows
/// shorter than, equal to and longer than the text. Outputs are means of values below 1 and may
/// cancel: the weights' f32 errors (scores below 100, so 100 · 2^-24 in the exponent) remain as
/// an absolute error of 1e-5.
#[test]
fn attention_agrees_with_the_oracle() {
    // Also more queries a head than a task takes, and than tiles take.
    let shapes = [
        (1, 1, 8),
        (4, 2, 16),
        (4, 1, 64),
        (3, 3, 5),
        (2, 1, 80),
        (2, 2, 128),
        (40, 1, 32),
        (66, 1, 32),
    ];
    on_every_backend!(|name, backend| {
        for (query, kv, dim) in shapes {
            for window in [None, Some(1), Some(5), Some(24), Some(900)] {
                let heads = Heads { query, kv, dim };
                let segments = vec![(0, 1), (0, 17), (15, 1), (16, 2), (31, 18), (90, 1), (3, 40)];
                let case = Case { heads, window, segments };
                let inputs = Inputs::new(&case);
                let name = format!("{name}, {heads:?}, window {window:?}");
                let (ours, oracle) = (run(&backend, &case, &inputs), run(&Oracle, &case, &inputs));
                assert_close(&name, &ours, &oracle, BF16, 1e-5);
            }
        }
    });
}

/// Goal: decoding one row alone gives the bits that it has within a longer segment, for heads that
/// fill vectors and heads that do not.
#[test]
fn a_row_does_not_notice_its_segment() {
    on_every_backend!(|name, backend| {
        for (dim, window) in [
            (16, None),
            (16, Some(7)),
            (64, None),
            (64, Some(30)),
            (80, None),
            (128, None),
            (5, None),
        ] {
            let heads = Heads { query: 4, kv: 2, dim };
            let case = Case { heads, window, segments: vec![(5, 90)] };
            let inputs = Inputs::new(&case);
            let whole = run(&backend, &case, &inputs);
            for row in [0, 1, 10, 11, 43, 89] {
                let alone = inputs.only(0, row..row + 1);
                let width = heads.query_width();
                assert_eq!(
                    run(&backend, &case, &alone)[..width],
                    whole[row * width..][..width],
                    "{name}: row {row}, {dim} channels, window {window:?}"
                );
            }
        }
    });
}

/// Goal: a slot that a row does not see contributes exactly nothing, not even 0 · NaN: pages are
/// handed on from sequence to sequence with what was in them.
#[test]
fn unseen_slots_may_hold_anything() {
    on_every_backend!(|name, backend| {
        for (dim, window) in [(8, None), (16, Some(5)), (64, None), (64, Some(20)), (80, Some(33))]
        {
            let heads = Heads { query: 4, kv: 2, dim };
            let case = Case { heads, window, segments: vec![(0, 3), (20, 1), (45, 2), (63, 1)] };
            let mut inputs = Inputs::new(&case);
            inputs.share(3, 2, 2);
            let clean = run(&backend, &case, &inputs);
            let mut seen = vec![false; inputs.shape.pages * PAGE_LEN];
            for (index, &(start, rows)) in case.segments.iter().enumerate() {
                let first = window.map_or(0, |window| (start + 1_usize).saturating_sub(window));
                for position in first..start + rows {
                    let page = inputs.tables[index * inputs.table_stride + position / PAGE_LEN];
                    seen[page as usize * PAGE_LEN + position % PAGE_LEN] = true;
                }
            }
            for slot in (0..seen.len()).filter(|&slot| !seen[slot]) {
                inputs.fill((slot / PAGE_LEN) as u32, slot % PAGE_LEN, true, bf16::NAN);
            }
            assert_eq!(run(&backend, &case, &inputs), clean, "{name}, {dim} channels, {window:?}");
        }
    });
}

/// Goal: scores that rise and fall by hundreds over many pages: the running maximum is right, and
/// nothing overflows.
#[test]
fn far_apart_scores_agree_with_the_oracle() {
    let heads = Heads { query: 2, kv: 1, dim: 64 };
    on_every_backend!(|name, backend| {
        let case = Case { heads, window: None, segments: vec![(250, 6), (100, 1)] };
        let mut inputs = Inputs::new(&case);
        inputs.qkv.iter_mut().for_each(|q| *q = bf16::from_f32(q.to_f32() * 32.0));
        let (ours, oracle) = (run(&backend, &case, &inputs), run(&Oracle, &case, &inputs));
        // Scores up to 64 · 64 · 0.3 = 1,200 with 64 roundings of 2^-24 each: 5e-3 in the weights.
        assert_close(&name, &ours, &oracle, BF16, 5e-3);
    });
}

/// Goal: long texts are cut into splits that are joined again, and a row's bits do not depend on
/// whether they are: a device with few rows to work on gives each split a block of its own, one with
/// many does not.
#[test]
fn long_texts_agree_however_they_are_split() {
    on_every_backend!(|name, backend| {
        for (query, kv, dim) in [(2, 1, 64), (3, 3, 40), (4, 2, 128), (12, 1, 200)] {
            for window in [None, Some(300), Some(20)] {
                let heads = Heads { query, kv, dim };
                let case = Case { heads, window, segments: vec![(600, 2)] };
                let few = Inputs::new(&case);
                let name = format!("{name}, {heads:?}, window {window:?}");
                let ours = run(&backend, &case, &few);
                assert_close(&name, &ours, &run(&Oracle, &case, &few), BF16, 1e-5);
                // The same two rows with enough neighbours to keep any device busy.
                let many = vec![(600, 2), (3, 40), (17, 40)];
                let mut batch = Inputs::new(&Case { heads, window, segments: many.clone() });
                let (row, stride) = (2 * heads.qkv_width(), few.table_stride);
                batch.qkv[..row].copy_from_slice(&few.qkv);
                for page in 0..stride {
                    let size = few.shape.page_len();
                    let from = few.shape.pages + few.tables[page] as usize;
                    let to = batch.shape.pages + batch.tables[page] as usize;
                    batch.pool[to * size..][..size]
                        .copy_from_slice(&few.pool[from * size..][..size]);
                }
                let together = run(&backend, &Case { heads, window, segments: many }, &batch);
                let width = 2 * heads.query_width();
                assert_eq!(ours[..width], together[..width], "{name}");
            }
        }
    });
}

/// Goal: candidates that share the prompt's pages, and some a beam's, get what the oracle says, and
/// the bits that each gets alone: neither those who share a page nor strangers in the same tile
/// change anything, with windows and without, in long texts and short ones.
#[test]
fn siblings_get_the_bits_that_each_gets_alone() {
    let mut families = Vec::new();
    for (index, &(query, kv, dim)) in FAMILIES.iter().enumerate() {
        for (window, longer) in [(None, 0), (Some(30), 0), (None, 256), (Some(290), 512)] {
            if longer == 0 || index % 3 == 0 {
                let (case, inputs) = family(Heads { query, kv, dim }, window, longer);
                let oracle = run(&Oracle, &case, &inputs);
                families.push((case, inputs, oracle));
            }
        }
    }
    on_every_backend!(|name, backend| {
        for (case, inputs, oracle) in &families {
            let Case { heads, window, segments } = case;
            let name = format!("{name}, {heads:?}, window {window:?}, {segments:?}");
            let ours = run(&backend, case, inputs);
            assert_close(&name, &ours, oracle, BF16, 1e-5);
            for (index, segment) in inputs.segments.iter().enumerate() {
                let alone = run(&backend, case, &inputs.only(index, 0..segment.rows));
                let (len, width) = (segment.rows * heads.query_width(), heads.query_width());
                let together = &ours[segment.first_row * width..][..len];
                assert_eq!(alone[..len], *together, "{name}: segment {index}");
            }
        }
    });
}

/// Goal: values that are no numbers, of a model gone wrong, reach the rows of their own sequence and
/// no others, whatever shares a tile with them.
#[test]
fn what_is_no_number_stays_with_its_sequence() {
    on_every_backend!(|name, backend| {
        for (query, kv, dim) in FAMILIES {
            let heads = Heads { query, kv, dim };
            let (case, mut inputs) = family(heads, None, 0);
            let clean = run(&backend, &case, &inputs);
            // A page of candidate 1 alone.
            let page = inputs.pages(1, None)[4];
            inputs.fill(page, 0, false, bf16::INFINITY);
            inputs.fill(page, 3, true, bf16::NAN);
            let ours = run(&backend, &case, &inputs);
            let width = heads.query_width();
            assert!(
                ours[width..2 * width].iter().all(|x| x.to_f32().is_nan()),
                "{name}: {heads:?}"
            );
            assert_eq!(ours[..width], clean[..width], "{name}: {heads:?}");
            assert_eq!(ours[2 * width..], clean[2 * width..], "{name}: {heads:?}");
        }
    });
}

/// Goal: a page that several rows share is read once for all of them. On the emulator, which counts
/// bytes, and has so few processors that the rows of each case are one tile of 32 queries.
#[test]
fn a_shared_page_is_read_once() {
    let siblings = |count, start, rows| vec![(start, rows); count];
    // Heads, prompt pages that are shared, and the segments: decoding, scoring, prefill, long texts.
    let cases = [
        (Heads { query: 8, kv: 4, dim: 64 }, 5, siblings(16, 90, 1), None),
        (Heads { query: 8, kv: 4, dim: 64 }, 5, siblings(16, 90, 1), Some(40)),
        (Heads { query: 4, kv: 4, dim: 128 }, 3, siblings(4, 60, 8), None),
        (Heads { query: 4, kv: 4, dim: 16 }, 0, siblings(1, 100, 32), None),
        (Heads { query: 8, kv: 4, dim: 80 }, 30, siblings(16, 500, 1), None),
    ];
    for (heads, prompt, segments, window) in cases {
        let case = Case { heads, window, segments };
        let mut inputs = Inputs::new(&case);
        for sibling in 1..case.segments.len() {
            inputs.share(0, sibling, prompt);
        }
        let all = (0..case.segments.len()).flat_map(|index| inputs.pages(index, window));
        let distinct = all.collect::<HashSet<_>>().len();
        for (name, backend) in emulators() {
            run(&backend, &case, &inputs);
            let bytes = inputs.shape.page_len() * size_of::<bf16>() * distinct;
            assert_eq!(
                backend.device().copied_bytes(),
                bytes as u64,
                "{name}: {heads:?}, {window:?}"
            );
        }
    }
}
