use super::matmul::Case;
use crate::harness::*;
use crate::oracle::gelu_erf;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, case: &Case) -> Vec<bf16> {
    let weight = matrix(backend, case.outputs, case.inputs, &case.weight);
    let bias = case.bias.as_ref().map(|bias| upload(backend, bias));
    let mut out = upload(backend, &vec![bf16::ONE; (case.rows + 1) * case.outputs]);
    let x = upload(backend, &case.x);
    backend.matmul_gelu_erf(case.rows, &x, &weight, bias.as_ref(), &mut out).unwrap();
    download(backend, &out)
}

/// Goal: all shapes, with and without bias, small, middling and saturated: against the oracle, which allows for
/// the sums' error (GELU's slope is at most 1.13), and against GELU of the backend's own sums, to the rounding of
/// bf16. 1 + erf cancels for negative sums, as 1 + tanh does in matmul_gelu.
#[test]
fn matmul_gelu_erf_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for case in Case::of_all_sizes() {
            let (name, ours) = (case.describe(&name), run(&backend, &case));
            assert_close(&name, &ours, &run(&Oracle, &case), BF16, 1.13 * case.error() + 1e-6);
            let weight = matrix(&backend, case.outputs, case.inputs, &case.weight);
            let sums = case.sums(&backend, &weight, case.bias.as_deref());
            let activated: Vec<bf16> =
                sums.into_iter().map(|v| bf16::from_f64(gelu_erf(v))).collect();
            let ours = &ours[..activated.len()];
            assert_close(&format!("{name}, own sums"), ours, &activated, BF16, 1e-6);
        }
    });
}

#[test]
fn a_row_does_not_notice_its_batch() {
    on_every_backend!(|name, backend| {
        Case::rows_do_not_notice_their_batch(&name, |case| run(&backend, case));
    });
}
