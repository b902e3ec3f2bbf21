use crate::harness::*;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, width: usize, scale: f32) -> Vec<bf16> {
    let x = Random::new((rows * width) as u64).halves((rows + 1) * width, scale);
    let mut x = upload(backend, &x);
    backend.gelu(rows, width, &mut x).unwrap();
    download(backend, &x)
}

/// Goal: small, middling and saturated inputs. 1 + tanh cancels for negative inputs: its error,
/// 2^-24 · a few, is multiplied by |x| ≤ 6, beyond which both are 0 to f32.
#[test]
fn gelu_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for width in [1, 15, 17, 64] {
            for (rows, scale) in ROWS.into_iter().zip([1.0, 3.0, 6.0, 20.0, 300.0, 0.01, 4.0]) {
                let ours = run(&backend, rows, width, scale);
                assert_close(&name, &ours, &run(&Oracle, rows, width, scale), BF16, 2e-6);
            }
        }
    });
}
