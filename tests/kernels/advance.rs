use crate::harness::*;
use trimtab::backend::{Advance, Backend, PAGE_LEN};

/// Tokens, positions, slots and history after two steps.
fn run<B: Backend>(backend: &B, rows: usize) -> [Vec<u32>; 4] {
    let (table_stride, mut random) = (4, Random::new(rows as u64));
    let tables = upload(backend, &random.shuffled(rows * table_stride));
    // Some rows cross into their next page, some leave their table.
    let positions: Vec<u32> = (0..rows).map(|row| (13 + 17 * row as u32 % 51) % 64).collect();
    let mut tokens = upload(backend, &random.indices(rows + 1, 1000));
    let mut positions = upload(backend, &positions);
    let mut slots = upload(backend, &vec![7; rows]);
    let mut history = upload(backend, &vec![9; 3 * rows]);
    for step in 0..2 {
        let drawn = upload(backend, &random.indices(rows, 1000));
        let args = Advance {
            rows,
            step,
            drawn: &drawn,
            tables: &tables,
            table_stride,
            tokens: &mut tokens,
            positions: &mut positions,
            slots: &mut slots,
            history: &mut history,
        };
        backend.advance(args).unwrap();
    }
    [tokens, positions, slots, history].map(|buffer| download(backend, &buffer))
}

/// Goal: rows move on by one, into their table's next page at a page's end, and nothing else moves;
/// a row without a further page keeps its slot.
#[test]
fn advance_agrees_with_the_oracle() {
    for rows in [1, 5, 33, 300] {
        let oracle = run(&Oracle, rows);
        assert!(oracle[1].iter().any(|&at| (at as usize).is_multiple_of(PAGE_LEN)) || rows < 5);
        on_every_backend!(|name, backend| {
            assert_eq!(run(&backend, rows), oracle, "{name}, {rows} rows");
        });
    }
}
