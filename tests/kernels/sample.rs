use crate::harness::*;
use crate::oracle::pick;
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::{Backend, NO_TOKEN, SampleRow};
use trimtab::philox::Draw;

fn row(temperature: f32, top_k: u32, top_p: f32, position: u32) -> SampleRow {
    let draw = Draw { seed: 11, stream: 5, candidate: 2, position };
    SampleRow { logits: 0, temperature, top_k, top_p, draw }
}

/// The tokens of rows that each have logits of their own.
fn run<B: Backend>(backend: &B, rows: &[SampleRow], vocab: usize, logits: &[f32]) -> Vec<u32> {
    let own = |(row, &how)| SampleRow { logits: row as u32, ..how };
    let rows: Vec<SampleRow> = rows.iter().enumerate().map(own).collect();
    run_as_named(backend, &rows, vocab, logits)
}

fn run_as_named<B: Backend>(
    backend: &B,
    rows: &[SampleRow],
    vocab: usize,
    logits: &[f32],
) -> Vec<u32> {
    let mut tokens = upload(backend, &vec![u32::MAX; rows.len() + 1]);
    backend.sample(rows, &crate::harness::logits(backend, vocab, logits), &mut tokens).unwrap();
    let tokens: Vec<u32> = download(backend, &tokens);
    assert_eq!(tokens[rows.len()], u32::MAX, "beyond the rows");
    tokens[..rows.len()].to_vec()
}

/// Goal: the oracle's token for any setting, vocabulary and distribution. A draw that falls
/// within rounding of a token's edge may go to either side: at most 1 in 1,000 here.
#[test]
fn sample_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
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
                // More than the GPU's kernel lists.
                (1.0, 2000, 0.9),
            ] {
                let rows: Vec<_> = (0..60).map(|i| row(temperature, top_k, top_p, i)).collect();
                let mut random = Random::new(vocab as u64 + u64::from(top_k));
                // Equal logits now and then: ties.
                let logits: Vec<f32> =
                    (0..60 * vocab).map(|_| (random.unit() * 6.0 * 16.0).round() / 16.0).collect();
                let ours = run(&backend, &rows, vocab, &logits);
                for (i, (row, ours)) in rows.iter().zip(ours).enumerate() {
                    let logits: Vec<f64> =
                        logits[i * vocab..][..vocab].iter().map(|&l| f64::from(l)).collect();
                    different += usize::from(pick(row, &logits) != ours as usize);
                    drawn += 1;
                }
            }
        }
        assert!(different * 1000 <= drawn, "{name}: {different} of {drawn} differ");
    });
}

/// Rows whose largest logits lie in few groups or in many, and what they are.
fn rows_of_groups(vocab: usize) -> Vec<(&'static str, Vec<f32>)> {
    let random = &mut Random::new(vocab as u64);
    let raised = |random: &mut Random, first: usize| {
        let mut logits = random.numbers(vocab, 1.0);
        logits[first..].iter_mut().take(16).for_each(|logit| *logit += 8.0);
        logits
    };
    let mut single = vec![f32::NEG_INFINITY; vocab];
    single[vocab - 1] = -3.0;
    vec![
        ("any", random.numbers(vocab, 6.0)),
        ("ties", random.numbers(vocab, 6.0).into_iter().map(|l| (l * 4.0).round() / 4.0).collect()),
        ("one group", raised(random, 320)),
        ("two groups", raised(random, 328)),
        ("the last group", raised(random, vocab / 16 * 16)),
        ("all alike", vec![0.25; vocab]),
        ("one token", single),
    ]
}

/// Goal: the oracle's token in whichever groups the largest logits lie, also where these are fewer than top-k or
/// too many to be listed; but for draws within rounding of a token's edge, at most 1 in 500. Draws share a row.
#[test]
fn top_k_agrees_with_the_oracle_whichever_groups_matter() {
    on_every_backend!(|name, backend| {
        let (mut different, mut drawn) = (0, 0);
        for vocab in [1003, 17_001] {
            for (what, logits) in rows_of_groups(vocab) {
                let exact: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
                for (temperature, top_k, top_p) in
                    [(0.0, 5, 1.0), (0.8, 1, 1.0), (0.8, 50, 1.0), (1.2, 64, 0.9), (1.0, 1002, 1.0)]
                {
                    let rows: Vec<_> = (0..12).map(|i| row(temperature, top_k, top_p, i)).collect();
                    let ours = run_as_named(&backend, &rows, vocab, &logits);
                    for (row, ours) in rows.iter().zip(ours) {
                        let same = pick(row, &exact) == ours as usize;
                        assert!(same || temperature > 0.0, "{name}: {what}");
                        different += usize::from(!same);
                        drawn += 1;
                    }
                }
            }
        }
        assert!(different * 500 <= drawn, "{name}: {different} of {drawn} differ");
    });
}

/// Goal: the same draw, to the bit, in whichever groups what can be drawn lies: one token a group; all in few
/// groups, so that all others are listed too; and so many others that they cannot be.
#[test]
fn a_draw_does_not_notice_the_groups() {
    const LARGE: usize = 64;
    let mut random = Random::new(21);
    let values: Vec<f32> = random.numbers(LARGE, 3.0);
    on_every_backend!(|name, backend| {
        for (temperature, top_k, top_p) in [(0.7, 50, 1.0), (1.5, 64, 1.0), (1.0, 50, 0.8)] {
            let rows: Vec<_> = (0..24).map(|i| row(temperature, top_k, top_p, i)).collect();
            // Which of the large logits are drawn: the first lies at `first`, the others `apart`.
            let drawn = |vocab, first: usize, apart: usize| -> Vec<usize> {
                let mut logits = vec![-30.0; vocab];
                for (i, &value) in values.iter().enumerate() {
                    logits[first + i * apart] = value;
                }
                let tokens = run_as_named(&backend, &rows, vocab, &logits);
                tokens.into_iter().map(|token| (token as usize - first) / apart).collect()
            };
            let spread = drawn(3001, 40, 17);
            assert_eq!(spread, drawn(3001, 2937, 1), "{name}: the last groups");
            assert_eq!(spread, drawn(20_001, 7, 1), "{name}: more groups than are listed");
            assert_eq!(spread, drawn(777, 700, 1), "{name}: fewer groups than top-k");
        }
    });
}

/// Goal: temperature 0 takes the largest logit, and the lowest id of equal ones.
#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    on_every_backend!(|name, backend| {
        let tokens = run(&backend, &[row(0.0, 50, 1.0, 0)], 5, &[1.0, 3.0, 2.0, 3.0, 3.0]);
        assert_eq!(tokens, [1], "{name}");
        let mut logits = vec![0.5; 1003];
        for lowest in [1002, 900, 47, 33, 32, 3] {
            logits[lowest] = 2.0;
            let tokens = run(&backend, &[row(0.0, 0, 1.0, 0)], logits.len(), &logits);
            assert_eq!(tokens, [lowest as u32], "{name}");
        }
    });
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

/// Goal: where logits are no distribution no token is drawn, greedily or not; and only there.
#[test]
fn logits_that_are_no_distribution_give_no_token() {
    let (nan, inf, none) = (f32::NAN, f32::INFINITY, NO_TOKEN);
    for (logits, expected) in [
        ([nan; 4], none),
        ([-inf; 4], none),
        ([nan, 1.0, nan, 1.0], none),
        ([-inf, 1.0, 2.0, nan], none),
        ([1.0, inf, -inf, 0.0], none),
        ([-inf, -inf, 2.0, -inf], 2),
        ([-inf, 3e38, -3e38, -inf], 1),
    ] {
        on_every_backend!(|name, backend| {
            for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.5)] {
                let tokens = run(&backend, &[row(temperature, top_k, top_p, 1)], 4, &logits);
                assert_eq!(tokens, [expected], "{name}: {logits:?}, top-k {top_k}, top-p {top_p}");
            }
        });
    }
}

/// Goal: one broken logit breaks its row, in whichever group it is, and no other row.
#[test]
fn a_broken_logit_is_noticed_in_every_group() {
    const VOCAB: usize = 1003;
    let whole = Random::new(8).numbers(VOCAB, 6.0);
    on_every_backend!(|name, backend| {
        for at in [0, 15, 500, 991, 992, 1002] {
            for broken in [f32::NAN, f32::INFINITY] {
                let mut logits = whole.repeat(2);
                logits[at] = broken;
                for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 50, 1.0), (1.0, 0, 0.5)] {
                    let how = row(temperature, top_k, top_p, 1);
                    let tokens = run(&backend, &[how, how], VOCAB, &logits);
                    assert_eq!(tokens[0], NO_TOKEN, "{name}: {broken} at {at}");
                    assert!((tokens[1] as usize) < VOCAB, "{name}: {broken} at {at}");
                }
            }
        }
    });
}

/// Goal: what has no probability is never drawn, also where little else is left.
#[test]
fn impossible_tokens_are_never_drawn() {
    let mut logits = vec![f32::NEG_INFINITY; 700];
    (logits[400], logits[650]) = (1.0, -3.0);
    for (top_k, top_p) in [(0, 1.0), (50, 1.0), (0, 0.999), (1, 1.0)] {
        let rows: Vec<_> = (0..500).map(|i| row(1.0, top_k, top_p, i)).collect();
        on_every_backend!(|name, backend| {
            let tokens = run(&backend, &rows, logits.len(), &logits.repeat(rows.len()));
            let possible = |&token: &u32| token == 400 || (token == 650 && top_k != 1);
            assert!(tokens.iter().all(possible), "{name}: top-k {top_k}, top-p {top_p}");
        });
    }
}

/// Goal: a vocabulary whose last tokens cannot be drawn is drawn from as if it ended before them, but for draws
/// that fall within rounding of a token's edge, at most 1 in 500: sums are over other parts then.
#[test]
fn a_tail_of_impossible_tokens_changes_nothing() {
    const VOCAB: usize = 2500;
    const ROWS: usize = 60;
    on_every_backend!(|name, backend| {
        let (mut different, mut drawn) = (0, 0);
        for (temperature, top_k, top_p) in [
            (0.7, 50, 1.0),
            (0.0, 0, 1.0),
            (1.0, 0, 1.0),
            (1.0, 0, 0.9),
            (0.7, 2600, 0.95),
            (1.0, 2400, 1.0),
        ] {
            let rows: Vec<_> =
                (0..ROWS as u32).map(|i| row(temperature, top_k, top_p, i)).collect();
            let logits = Random::new(5).numbers(ROWS * VOCAB, 6.0);
            let short = run(&backend, &rows, VOCAB, &logits);
            for tail in [1, 700] {
                let tail = vec![f32::NEG_INFINITY; tail];
                let padded = logits.chunks(VOCAB).flat_map(|row| [row, &tail].concat());
                let padded: Vec<f32> = padded.collect();
                let long = run(&backend, &rows, VOCAB + tail.len(), &padded);
                assert!(long.iter().all(|&token| (token as usize) < VOCAB), "{name}");
                different += long.iter().zip(&short).filter(|(long, short)| long != short).count();
                drawn += ROWS;
            }
        }
        assert!(different * 500 <= drawn, "{name}: {different} of {drawn} differ");
    });
}

/// Goal: equal logits are all tied with the k-th, so all are drawn; a nucleus takes the lowest
/// ids of them.
#[test]
fn ties_are_kept_together() {
    let (vocab, logits) = (3000, vec![0.25; 3000 * 200]);
    let most = |top_k, top_p| {
        let rows: Vec<_> = (0..200).map(|i| row(0.7, top_k, top_p, i)).collect();
        run(&cpu(), &rows, vocab, &logits).into_iter().max().unwrap()
    };
    assert!(most(10, 1.0) > 2900);
    assert!(most(0, 1.0) > 2900);
    assert!((1400..1500).contains(&most(0, 0.5)));
    assert!((1400..1500).contains(&most(10, 0.5)));
}

/// Goal: the same tokens with one thread and with two, alone and in a batch.
#[test]
fn a_rows_token_does_not_notice_its_batch() {
    let (vocab, two) = (5000, CpuBackend::new(Some(2)).unwrap());
    let logits = Random::new(3).numbers(40 * vocab, 8.0);
    for (top_k, top_p) in [(50, 1.0), (0, 0.9), (0, 1.0)] {
        let rows: Vec<_> = (0..40).map(|i| row(0.9, top_k, top_p, i)).collect();
        let whole = run(&cpu(), &rows, vocab, &logits);
        assert_eq!(whole, run(&two, &rows, vocab, &logits));
        for i in [0, 17, 39] {
            let alone = run(&cpu(), &rows[i..=i], vocab, &logits[i * vocab..][..vocab]);
            assert_eq!(alone, whole[i..=i]);
        }
    }
}

/// Goal: rows may draw from the logits of any row, several from one, in any order.
#[test]
fn rows_draw_from_the_logits_that_they_name() {
    let (vocab, mut random) = (300, Random::new(9));
    let logits = random.numbers(7 * vocab, 6.0);
    let named = random.indices(150, 7);
    let rows: Vec<_> = named
        .iter()
        .zip(0..)
        .map(|(&logits, i)| SampleRow { logits, ..row(0.9, 50, 1.0, i) })
        .collect();
    on_every_backend!(|name, backend| {
        let tokens = run_as_named(&backend, &rows, vocab, &logits);
        for (i, (row, token)) in rows.iter().zip(tokens).enumerate() {
            let own = &logits[row.logits as usize * vocab..][..vocab];
            assert_eq!(run(&backend, &[*row], vocab, own), [token], "{name}: draw {i}");
        }
    });
}
