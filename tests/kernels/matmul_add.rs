use super::matmul::{Case, rows_and_shapes};
use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, case: &Case) -> Vec<f32> {
    let weight = matrix(backend, case.outputs, case.inputs, &case.weight);
    let bias = case.bias.as_ref().map(|bias| upload(backend, bias));
    let residual = Random::new(9).numbers((case.rows + 1) * case.outputs, 10.0);
    let mut residual = upload(backend, &residual);
    let x = upload(backend, &case.x);
    backend.matmul_add(case.rows, &x, &weight, bias.as_ref(), &mut residual).unwrap();
    download(backend, &residual)
}

/// Goal: the product and the bias are added once to what is there. Three more f32 roundings of
/// numbers below 300.
#[test]
fn matmul_add_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for (rows, shape) in rows_and_shapes() {
            let case = Case::new(rows, shape, rows % 2 == 1);
            let bound = case.error() + 3.0 * 300.0 * 2f64.powi(-24);
            let name = format!("{name}, {rows} rows of {shape:?}");
            assert_close(&name, &run(&backend, &case), &run(&Oracle, &case), 0.0, bound);
        }
    });
}
