use crate::harness::*;
use trimtab::backend::Backend;

/// The logits of models with these vocabularies: base, tuned and untuned.
fn run<B: Backend>(
    what: &str,
    backend: &B,
    rows: usize,
    [vocab, tuned, untuned]: [usize; 3],
) -> Vec<f32> {
    let mut random = Random::new((rows * vocab) as u64);
    // A row more than is used, and logits far from log-probabilities.
    let mut draw = |vocab| logits(backend, vocab, &random.numbers((rows + 1) * vocab, 20.0));
    let (tuned, untuned, mut sums) = (draw(tuned), draw(untuned), draw(vocab));
    backend.add_guidance(rows, 0.7, &tuned, &untuned, &mut sums).unwrap();
    assert_maxima(what, backend, &sums);
    download(backend, &sums.values)
}

/// Goal: differences of log-softmaxes, not of logits. A handful of f32 roundings of numbers
/// below 100.
#[test]
fn add_guidance_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for vocab in [1, 15, 17, 64, 1500] {
            for rows in ROWS {
                let ours = run(&name, &backend, rows, [vocab; 3]);
                assert_close(&name, &ours, &run("oracle", &Oracle, rows, [vocab; 3]), 0.0, 5e-5);
            }
        }
    });
}

/// Goal: each softmax is over its model's own tokens, and a token that one of the three models lacks cannot be drawn, in
/// whichever order their vocabularies are larger; the rows behind those asked for stay.
#[test]
fn tokens_that_not_all_models_have_become_impossible() {
    on_every_backend!(|name, backend| {
        for [a, b, c] in [[1, 2, 3], [15, 17, 64], [1500, 1501, 1499], [60, 2100, 1030]] {
            for sizes in
                [[a, b, c], [a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a], [a, a, c]]
            {
                for rows in [1, 3] {
                    let name = format!("{name}, {rows} rows of {sizes:?}");
                    let ours = run(&name, &backend, rows, sizes);
                    let exact = run("oracle", &Oracle, rows, sizes);
                    let (vocab, least) = (sizes[0], *sizes.iter().min().unwrap());
                    for row in 0..=rows {
                        let range =
                            row * vocab..row * vocab + if row < rows { least } else { vocab };
                        assert_close(&name, &ours[range.clone()], &exact[range.clone()], 0.0, 5e-5);
                        let beyond = &ours[range.end..(row + 1) * vocab];
                        assert!(beyond.iter().all(|&logit| logit == f32::NEG_INFINITY), "{name}");
                    }
                }
            }
        }
    });
}
