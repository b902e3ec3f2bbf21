use crate::harness::*;
use trimtab::backend::Backend;

fn run<B: Backend>(backend: &B, rows: usize, vocab: usize) -> Vec<f32> {
    let mut random = Random::new((rows * vocab) as u64);
    // A row more than is used, and logits far from log-probabilities.
    let mut draw = || upload(backend, &random.numbers((rows + 1) * vocab, 20.0));
    let (tuned, untuned, mut logits) = (draw(), draw(), draw());
    backend.add_guidance(rows, vocab, 0.7, &tuned, &untuned, &mut logits).unwrap();
    download(backend, &logits)
}

/// Goal: differences of log-softmaxes, not of logits. A handful of f32 roundings of numbers
/// below 100.
#[test]
fn add_guidance_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for vocab in [1, 15, 17, 64, 1500] {
            for rows in ROWS {
                let ours = run(&backend, rows, vocab);
                assert_close(&name, &ours, &run(&Oracle, rows, vocab), 0.0, 5e-5);
            }
        }
    });
}
