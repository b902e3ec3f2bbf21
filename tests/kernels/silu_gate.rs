use crate::harness::*;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, width: usize, scale: f32) -> Vec<bf16> {
    let mut random = Random::new((rows * width) as u64);
    let gate_up = upload(backend, &random.halves(rows * 2 * width, scale));
    let mut out = upload(backend, &vec![bf16::ONE; (rows + 1) * width]);
    backend.silu_gate(rows, width, &gate_up, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: also where the exponential saturates. Its error of a few f32 units is far below bf16's;
/// beyond e^-87 the true value is below 1e-34.
#[test]
fn silu_gate_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for width in [1, 15, 17, 64] {
            for (rows, scale) in ROWS.into_iter().zip([1.0, 5.0, 20.0, 80.0, 300.0, 0.01, 3.0]) {
                let ours = run(&backend, rows, width, scale);
                assert_close(&name, &ours, &run(&Oracle, rows, width, scale), BF16, 1e-30);
            }
        }
    });
}
