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
}

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
    let shapes = [(1, 1, 8), (4, 2, 16), (4, 1, 64), (3, 3, 5), (2, 1, 80), (2, 2, 128)];
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
                let alone = Inputs {
                    segments: vec![Segment { first_row: 0, rows: 1, first_position: 5 + row }],
                    positions: vec![5 + row as u32],
                    row_segments: vec![0],
                    qkv: inputs.qkv[row * heads.qkv_width()..][..heads.qkv_width()].to_vec(),
                    pool: inputs.pool.clone(),
                    tables: inputs.tables.clone(),
                    ..inputs
                };
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
                for (head, which) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let start = inputs.shape.offset(1, slot / PAGE_LEN, head, which);
                    inputs.pool[start + slot % PAGE_LEN * dim..][..dim].fill(bf16::NAN);
                }
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
