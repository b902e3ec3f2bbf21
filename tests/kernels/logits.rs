use super::matmul::{Case, rows_and_shapes};
use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, case: &Case) -> Vec<f32> {
    let head = matrix(backend, case.outputs, case.inputs, &case.weight);
    let mut out = upload(backend, &vec![777.0; (case.rows + 1) * case.outputs]);
    backend.logits(case.rows, &upload(backend, &case.x), &head, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: the head's product in f32, not rounded to bf16.
#[test]
fn logits_agree_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for (rows, shape) in rows_and_shapes() {
            let case = Case::new(rows, shape, false);
            let name = format!("{name}, {rows} rows of {shape:?}");
            let bound = case.error() + 1e-6;
            assert_close(&name, &run(&backend, &case), &run(&Oracle, &case), 0.0, bound);
        }
    });
}
