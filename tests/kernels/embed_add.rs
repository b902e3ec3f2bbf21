use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, rows: usize, width: usize) -> Vec<f32> {
    let mut random = Random::new((rows * width) as u64);
    let table = matrix(backend, 70, width, &random.halves(70 * width, 1.0));
    let positions = upload(backend, &random.indices(rows, 70));
    let mut x = upload(backend, &random.numbers((rows + 2) * width, 1.0));
    backend.embed_add(rows, &positions, &table, &mut x).unwrap();
    download(backend, &x)
}

/// Goal: one f32 addition per number (2^-24 relative, of a sum below 2).
#[test]
fn embed_add_adds_rows_of_the_table() {
    on_every_backend!(|name, backend| {
        for width in [1, 17, 64] {
            for rows in ROWS {
                assert_close(
                    &name,
                    &run(&backend, rows, width),
                    &run(&Oracle, rows, width),
                    0.0,
                    1.2e-7,
                );
            }
        }
    });
}
