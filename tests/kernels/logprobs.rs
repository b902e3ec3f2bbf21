use super::matmul::Case;
use crate::harness::*;
use trimtab::backend::{Backend, Entries};

/// The log-probability of each entry's target.
fn run<B: Backend>(backend: &B, case: &Case, entries: &Listed, targets: &[u32]) -> Vec<f32> {
    let head = matrix(backend, case.outputs, case.inputs, &case.weight);
    let mut out = upload(backend, &vec![777.0; targets.len() + 2]);
    let (x, targets) = (upload(backend, &case.x), upload(backend, targets));
    let [starts, list] = entries.upload(backend);
    let entries = Entries { rows: case.rows, starts: &starts, list: &list };
    backend.logprobs(&x, &head, entries, &targets, &mut out).unwrap();
    download(backend, &out)
}

fn targets(case: &Case, entries: &Listed) -> Vec<u32> {
    let mut targets = Random::new(5).indices(entries.list.len(), case.outputs);
    // The ends of the vocabulary, where panels and tasks begin and end.
    targets.iter_mut().take(1).for_each(|target| *target = case.outputs as u32 - 1);
    targets
}

/// Goal: log-softmax at the targets of one to four entries a row, for vocabularies of one token, of
/// one panel and of several tasks. The sum of exponentials has a relative error of a few f32 units per 16th term.
#[test]
fn logprobs_agree_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for shape in [(4, 1), (16, 64), (33, 65), (48, 600), (64, 1024), (20, 2200), (264, 130)] {
            // More rows than any path takes as one block, once.
            let most = (shape == (16, 64)).then_some(530);
            for rows in ROWS.into_iter().chain([0, 120, 130]).chain(most) {
                let case = Case::new(rows, shape, false);
                let entries = Listed::random(rows, &mut Random::new(rows as u64));
                let targets = targets(&case, &entries);
                let name = format!("{name}, {rows} rows of {shape:?}");
                let ours = run(&backend, &case, &entries, &targets);
                let oracle = run(&Oracle, &case, &entries, &targets);
                assert_close(&name, &ours, &oracle, 0.0, 2.0 * case.error() + 2e-5);
            }
        }
    });
}

/// Goal: the same bits alone, in a batch, with other entries beside, and with two threads.
#[test]
fn a_rows_logprob_does_not_notice_its_batch() {
    let case = Case::new(120, (64, 2200), false);
    let entries = Listed::random(case.rows, &mut Random::new(6));
    let targets = targets(&case, &entries);
    on_every_backend!(|name, backend| {
        let whole = run(&backend, &case, &entries, &targets);
        for row in [0, 1, 13, 69, 119] {
            let entry = entries.list[entries.starts[row] as usize] as usize;
            let x = case.x[row * case.inputs..][..case.inputs].to_vec();
            let alone = Case { rows: 1, x, weight: case.weight.clone(), bias: None, ..case };
            let ours = run(&backend, &alone, &Listed::own(1), &targets[entry..=entry]);
            assert_eq!(ours[0].to_bits(), whole[entry].to_bits(), "{name}: row {row}");
        }
    });
    let whole = run(&cpu(), &case, &entries, &targets);
    let two = trimtab::backend::cpu::CpuBackend::new(Some(2)).unwrap();
    assert_eq!(whole, run(&two, &case, &entries, &targets));
}
