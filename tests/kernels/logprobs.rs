use super::matmul::Case;
use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, case: &Case, targets: &[u32]) -> Vec<f32> {
    let head = matrix(backend, case.outputs, case.inputs, &case.weight);
    let mut out = upload(backend, &vec![777.0; case.rows + 2]);
    let (x, targets) = (upload(backend, &case.x), upload(backend, targets));
    backend.logprobs(case.rows, &x, &head, &targets, &mut out).unwrap();
    download(backend, &out)
}

fn targets(case: &Case) -> Vec<u32> {
    let mut targets = Random::new(5).indices(case.rows, case.outputs);
    // The ends of the vocabulary, where panels and tasks begin and end.
    targets[0] = case.outputs as u32 - 1;
    targets
}

/// Goal: log-softmax at the target, for vocabularies of one entry, of one panel and of several
/// tasks. The sum of exponentials has a relative error of a few f32 units per 16th term.
#[test]
fn logprobs_agree_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for shape in [(4, 1), (16, 64), (33, 65), (48, 600), (64, 1024), (20, 2200)] {
            for rows in ROWS {
                let case = Case::new(rows, shape, false);
                let targets = targets(&case);
                let name = format!("{name}, {rows} rows of {shape:?}");
                let (ours, oracle) =
                    (run(&backend, &case, &targets), run(&Oracle, &case, &targets));
                assert_close(&name, &ours, &oracle, 0.0, 2.0 * case.error() + 2e-5);
            }
        }
    });
}

/// Goal: the same bits alone, in a batch, and with two threads.
#[test]
fn a_rows_logprob_does_not_notice_its_batch() {
    let case = Case::new(70, (64, 2200), false);
    let targets = targets(&case);
    on_every_backend!(|name, backend| {
        let whole = run(&backend, &case, &targets);
        for row in [0, 1, 13, 69] {
            let x = case.x[row * case.inputs..][..case.inputs].to_vec();
            let alone = Case { rows: 1, x, weight: case.weight.clone(), bias: None, ..case };
            let ours = run(&backend, &alone, &targets[row..=row]);
            assert_eq!(ours[0].to_bits(), whole[row].to_bits(), "{name}: row {row}");
        }
    });
    let whole = run(&cpu(), &case, &targets);
    let two = trimtab::backend::cpu::CpuBackend::new(Some(2)).unwrap();
    assert_eq!(whole, run(&two, &case, &targets));
}
