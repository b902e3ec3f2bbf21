use super::matmul::{Case, rows_and_shapes};
use crate::harness::*;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

fn run<B: Backend>(what: &str, backend: &B, case: &Case) -> Vec<f32> {
    let head = matrix(backend, case.outputs, case.inputs, &case.weight);
    let mut out = logits(backend, case.outputs, &vec![777.0; (case.rows + 1) * case.outputs]);
    backend.logits(case.rows, &upload(backend, &case.x), &head, &mut out).unwrap();
    assert_maxima(what, backend, &out);
    download(backend, &out.values)
}

/// Goal: the head's product in f32, not rounded to bf16, with its maxima; the row behind those asked for
/// stays.
#[test]
fn logits_agree_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for (rows, shape) in rows_and_shapes() {
            let case = Case::new(rows, shape, false);
            let name = format!("{name}, {rows} rows of {shape:?}");
            let bound = case.error() + 1e-6;
            let ours = run(&name, &backend, &case);
            assert_close(&name, &ours, &run("oracle", &Oracle, &case), 0.0, bound);
        }
    });
}

/// Goal: a maximum is NaN where any logit of its group is, the first, the last or one in between, and only there.
#[test]
fn maxima_say_where_a_logit_is_nan() {
    on_every_backend!(|name, backend| {
        for broken in [0, 15, 16, 24, 47, 48, 52] {
            let mut case = Case::new(3, (53, 40), false);
            case.weight[broken * 40 + 7] = bf16::from_f32(f32::NAN);
            let ours = run(&format!("{name}, output {broken}"), &backend, &case);
            assert_eq!(ours.iter().filter(|logit| logit.is_nan()).count(), 3, "{name}");
        }
    });
}

#[test]
fn a_row_does_not_notice_its_batch() {
    on_every_backend!(|name, backend| {
        Case::rows_do_not_notice_their_batch(&name, |case| run(&name, &backend, case));
    });
}
