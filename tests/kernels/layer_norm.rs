use crate::harness::*;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, width: usize, offset: f32) -> Vec<bf16> {
    let mut random = Random::new((rows * width) as u64);
    let x: Vec<f32> = random.numbers(rows * width, 1.0).iter().map(|x| x + offset).collect();
    let weight = upload(backend, &random.numbers(width, 2.0));
    let bias = upload(backend, &random.numbers(width, 1.0));
    let mut out = upload(backend, &vec![bf16::ONE; (rows + 1) * width]);
    backend.layer_norm(rows, &upload(backend, &x), &weight, &bias, 1e-5, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: also far from zero, where a one-pass variance would lose its digits. The mean of
/// numbers near 100 is off by 100 · 2^-24 · a few, over a spread of 1: 1e-4; a single channel
/// has no variance, and eps^-1/2 ≈ 316 magnifies that.
#[test]
fn layer_norm_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for width in [1, 15, 16, 17, 33, 100, 300, 4_500] {
            for (rows, offset) in ROWS.into_iter().zip([0.0, 100.0, -3.0, 1.0, 0.1, -50.0, 7.0]) {
                let ours = run(&backend, rows, width, offset);
                assert_close(&name, &ours, &run(&Oracle, rows, width, offset), BF16, 2e-3);
            }
        }
    });
}
