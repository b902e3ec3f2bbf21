use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, rows: usize, vocab: usize, width: usize) -> Vec<f32> {
    let mut random = Random::new((rows * vocab * width) as u64);
    let table = matrix(backend, vocab, width, &random.halves(vocab * width, 1.0));
    let tokens = upload(backend, &random.indices(rows, vocab));
    // Two rows more than are used: they must keep their poison.
    let mut out = upload(backend, &vec![777.0; (rows + 2) * width]);
    backend.embed(rows, &tokens, &table, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: rows of the table, exactly, whatever its packed form.
#[test]
fn embed_copies_rows_of_the_table() {
    on_every_backend!(|name, backend| {
        for (vocab, width) in [(1, 1), (65, 17), (130, 64), (63, 33), (70, 515)] {
            for rows in ROWS {
                let ours = run(&backend, rows, vocab, width);
                assert_close(&name, &ours, &run(&Oracle, rows, vocab, width), 0.0, 0.0);
            }
        }
    });
}
