use crate::harness::*;
use crate::oracle::pick;
use trimtab::backend::{Backend, SampleRow};
use trimtab::philox::Draw;

fn row(temperature: f32, top_k: u32, top_p: f32, position: u32) -> SampleRow {
    let draw = Draw { seed: 11, stream: 5, candidate: 2, position };
    SampleRow { temperature, top_k, top_p, draw }
}

fn run<B: Backend>(backend: &B, rows: &[SampleRow], vocab: usize, logits: &[f32]) -> Vec<u32> {
    let mut tokens = upload(backend, &vec![u32::MAX; rows.len() + 1]);
    backend.sample(rows, vocab, &upload(backend, logits), &mut tokens).unwrap();
    let tokens: Vec<u32> = download(backend, &tokens);
    assert_eq!(tokens[rows.len()], u32::MAX, "beyond the rows");
    tokens[..rows.len()].to_vec()
}

/// Goal: the oracle's token for any setting, vocabulary and distribution. A draw that falls
/// within rounding of a token's edge may go to either side: at most 1 in 1,000 here.
#[test]
fn sample_agrees_with_the_oracle() {
    for (name, cpu) in paths() {
        let (mut different, mut drawn) = (0, 0);
        for vocab in [1, 2, 17, 300, 5000] {
            for (temperature, top_k, top_p) in [
                (0.7, 50, 1.0),
                (0.0, 50, 1.0),
                (1.0, 0, 1.0),
                (1.3, 0, 0.9),
                (0.5, 20, 0.5),
                (1.0, 1, 1.0),
                (2.0, 3, 0.99),
                (0.1, 10_000, 0.95),
                (1.0, 299, 1.0),
            ] {
                let rows: Vec<_> = (0..60).map(|i| row(temperature, top_k, top_p, i)).collect();
                let mut random = Random::new(vocab as u64 + u64::from(top_k));
                // Equal logits now and then: ties.
                let logits: Vec<f32> =
                    (0..60 * vocab).map(|_| (random.unit() * 6.0 * 16.0).round() / 16.0).collect();
                let ours = run(&cpu, &rows, vocab, &logits);
                for (i, (row, ours)) in rows.iter().zip(ours).enumerate() {
                    let logits: Vec<f64> =
                        logits[i * vocab..][..vocab].iter().map(|&l| f64::from(l)).collect();
                    different += usize::from(pick(row, &logits) != ours as usize);
                    drawn += 1;
                }
            }
        }
        assert!(different * 1000 <= drawn, "{name}: {different} of {drawn} differ");
    }
}

/// Goal: temperature 0 takes the largest logit, and the lowest id of equal ones.
#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    let tokens = run(&cpu(), &[row(0.0, 50, 1.0, 0)], 5, &[1.0, 3.0, 2.0, 3.0, 3.0]);
    assert_eq!(tokens, [1]);
}

/// Goal: what top-k and top-p leave out is never drawn; what is tied with the k-th is.
#[test]
fn top_k_and_top_p_keep_what_they_promise() {
    let seen = |top_k, top_p, logits: &[f32]| {
        let rows: Vec<_> = (0..3000).map(|i| row(1.0, top_k, top_p, i)).collect();
        let mut seen = run(&cpu(), &rows, logits.len(), &logits.repeat(rows.len()));
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(seen(2, 1.0, &[0.0, 2.0, 1.0, 0.5]), [1, 2]);
    assert_eq!(seen(2, 1.0, &[1.0, 2.0, 1.0, 0.5]), [0, 1, 2], "tied with the second");
    // Probabilities 0.5, 0.3, 0.15, 0.05.
    let logits = [0.15f32, 0.5, 0.05, 0.3].map(f32::ln);
    assert_eq!(seen(0, 0.5, &logits), [1]);
    assert_eq!(seen(0, 0.6, &logits), [1, 3]);
    assert_eq!(seen(0, 0.9, &logits), [0, 1, 3]);
    assert_eq!(seen(0, 1.0, &logits), [0, 1, 2, 3]);
    // After top-k 2 the rest is renormalised: 0.625 and 0.375.
    assert_eq!(seen(2, 0.6, &logits), [1]);
}

/// Goal: frequencies are probabilities (chi-square, 7 degrees of freedom, p = 1e-6 at 41).
#[test]
fn frequencies_are_probabilities() {
    let logits = [0.0f32, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.2];
    let rows: Vec<_> = (0..40_000).map(|i| row(0.8, 0, 1.0, i)).collect();
    let mut counts = [0.0f64; 8];
    for token in run(&cpu(), &rows, 8, &logits.repeat(rows.len())) {
        counts[token as usize] += 1.0;
    }
    let weights = logits.map(|logit| f64::from(logit / 0.8).exp());
    let total: f64 = weights.iter().sum();
    let chi_square: f64 = counts
        .iter()
        .zip(weights)
        .map(|(count, weight)| {
            let expected = weight / total * rows.len() as f64;
            (count - expected).powi(2) / expected
        })
        .sum();
    assert!(chi_square < 41.0, "{chi_square}: {counts:?}");
}

/// Goal: logits that are no numbers lead to some token, not to a panic.
#[test]
fn bad_logits_still_give_a_token() {
    let nan = f32::NAN;
    for logits in [[nan; 4], [f32::NEG_INFINITY; 4], [nan, 1.0, nan, 0.0], [f32::INFINITY; 4]] {
        for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.5)] {
            let tokens = run(&cpu(), &[row(temperature, top_k, top_p, 1)], 4, &logits);
            assert!(tokens[0] < 4);
        }
    }
}
