use crate::harness::*;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, width: usize, scale: f32) -> Vec<bf16> {
    let mut random = Random::new((rows * width) as u64);
    let x = upload(backend, &random.numbers(rows * width, scale));
    let weight = upload(backend, &random.numbers(width, 2.0));
    let mut out = upload(backend, &vec![bf16::ONE; (rows + 1) * width]);
    backend.rms_norm(rows, &x, &weight, 1e-5, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: large and small inputs, widths that no vector divides. The f32 sum's relative error,
/// width · 2^-24, is far below bf16's.
#[test]
fn rms_norm_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for width in [1, 15, 16, 17, 33, 100, 300, 4_500] {
            for (rows, scale) in ROWS.into_iter().zip([1.0, 1e-3, 300.0, 1.0, 0.1, 30.0, 1.0]) {
                let ours = run(&backend, rows, width, scale);
                assert_close(&name, &ours, &run(&Oracle, rows, width, scale), BF16, 1e-6);
            }
        }
    });
}
