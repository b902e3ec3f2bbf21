use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, rows: usize, width: usize) -> Vec<f32> {
    let mut random = Random::new((rows * width) as u64);
    let x = upload(backend, &random.numbers(40 * width, 1.0));
    let indices = upload(backend, &random.indices(rows, 40));
    let mut out = upload(backend, &vec![777.0; (rows + 2) * width]);
    backend.gather_rows(rows, width, &indices, &x, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: the rows asked for, exactly, in the order asked, and nothing beyond.
#[test]
fn gather_rows_copies_rows() {
    for (name, cpu) in paths() {
        for rows in ROWS {
            assert_close(&name, &run(&cpu, rows, 19), &run(&Oracle, rows, 19), 0.0, 0.0);
        }
    }
}
