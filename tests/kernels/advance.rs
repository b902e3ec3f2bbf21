use crate::harness::*;
use trimtab::backend::{Advance, Backend, NO_SLOT, NO_TOKEN, PAGE_LEN};

/// Few, so that rows end.
const VOCAB: usize = 12;
const STEPS: usize = 4;

/// Tokens, positions, slots and history after some steps with these ends.
fn run<B: Backend>(backend: &B, rows: usize, ends: &[u32]) -> [Vec<u32>; 4] {
    let (table_stride, mut random) = (4, Random::new(rows as u64));
    let tables = upload(backend, &random.shuffled(rows * table_stride));
    // Some rows cross into their next page, some leave their table.
    let positions: Vec<u32> = (0..rows).map(|row| (12 + 13 * row as u32) % 64).collect();
    let mut tokens = upload(backend, &random.indices(rows + 1, VOCAB));
    let mut positions = upload(backend, &positions);
    let mut slots = upload(backend, &vec![7; rows]);
    let mut history = upload(backend, &vec![9; (STEPS + 1) * rows]);
    let ends = upload(backend, ends);
    for step in 0..STEPS {
        let mut drawn = random.indices(rows, VOCAB);
        // Some rows have nothing to draw at some step.
        drawn.iter_mut().skip(step).step_by(40).for_each(|token| *token = NO_TOKEN);
        let drawn = upload(backend, &drawn);
        let args = Advance {
            rows,
            step,
            drawn: &drawn,
            ends: &ends,
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
/// a row without a further page keeps its slot; with and without tokens that end a row.
#[test]
fn advance_agrees_with_the_oracle() {
    for rows in [1, 5, 33, 300] {
        let oracle = run(&Oracle, rows, &[]);
        assert!(oracle[1].iter().any(|&at| (at as usize).is_multiple_of(PAGE_LEN)) || rows < 5);
        on_every_backend!(|name, backend| {
            for ends in [&[][..], &[3], &[0, 7, 11]] {
                let oracle = run(&Oracle, rows, ends);
                assert_eq!(run(&backend, rows, ends), oracle, "{name}, {rows} rows, {ends:?}");
            }
        });
    }
}

/// Goal: a row that has drawn an end stands still for good, with that token and without a place,
/// whatever is drawn for it later, and so does one that had none to draw, with token 0; one that began
/// with such a token does not.
#[test]
fn rows_that_have_ended_stand_still() {
    let (rows, end) = (300, 3);
    on_every_backend!(|name, backend| {
        let [free, ..] = run(&backend, rows, &[]);
        let [tokens, positions, slots, history] = run(&backend, rows, &[end]);
        let (mut ended, mut none) = (0, 0);
        for row in 0..rows {
            let drawn: Vec<u32> = (0..STEPS).map(|step| history[step * rows + row]).collect();
            match drawn.iter().position(|&token| token == end || token == NO_TOKEN) {
                Some(first) if drawn[first] == NO_TOKEN => {
                    assert!(
                        drawn[first + 1..].iter().all(|&token| token == 0),
                        "{name}: {drawn:?}"
                    );
                    assert_eq!((tokens[row], positions[row], slots[row]), (0, 0, NO_SLOT));
                    none += 1;
                }
                Some(first) => {
                    assert!(drawn[first..].iter().all(|&token| token == end), "{name}: {drawn:?}");
                    assert_eq!((tokens[row], positions[row], slots[row]), (end, 0, NO_SLOT));
                    ended += 1;
                }
                None => {
                    assert_eq!(tokens[row], free[row], "{name}, row {row}");
                    assert_ne!(slots[row], NO_SLOT, "{name}, row {row}");
                }
            }
        }
        assert!((50..150).contains(&ended), "{name}: {ended} rows ended");
        assert!((20..33).contains(&none), "{name}: {none} rows had no token");
    });
}
