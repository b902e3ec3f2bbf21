//! The search against brute force over a scripted model, and its special cases.
#![allow(clippy::unwrap_used)]

mod toy;

use proptest::prelude::*;
use toy::{Judge, Pick, Script, noise, settings, stream};
use trimtab::error::{Error, Result};
use trimtab::kv_cache::Lifetime;
use trimtab::philox::Draw;
use trimtab::proposer::{Draft, Finish, Prompt, Proposer, Reader, StopStrings, Unfinished};
use trimtab::scheduler::{Finished, Scheduler};
use trimtab::search::{Chunk, Outcome, Settings};

fn prompt(text: &str) -> Prompt {
    Prompt::Text(text.into())
}

fn run_all(mut scheduler: Scheduler<Script, Judge>) -> Vec<Finished> {
    let mut finished = Vec::new();
    while scheduler.pending() > 0 {
        finished.extend(scheduler.tick().unwrap());
    }
    finished.sort_by_key(|done| done.id);
    finished
}

fn run(script: Script, judge: Judge, text: &str, settings: Settings) -> Outcome {
    let mut scheduler = Scheduler::new(script, judge, 1);
    scheduler.submit(0, &prompt(text), settings).unwrap();
    run_all(scheduler).remove(0).result.unwrap()
}

/// Algorithm 1 of the paper on plain lists, with finished hypotheses and equal ones kept once, and without
/// those that the judge cannot read. None if none is left.
fn brute_force(
    script: &Script,
    judge: &Judge,
    text: &str,
    s: &Settings,
) -> Option<(Vec<u32>, Vec<f64>)> {
    let ended = |tokens: &[u32]| tokens.last() == Some(&0) || tokens.len() >= s.max_new_tokens;
    let chunk = |start: &[u32], candidate: u32| {
        let mut tokens = start.to_vec();
        for _ in 0..s.chunk_len.unwrap_or(usize::MAX) {
            if ended(&tokens) {
                break;
            }
            let position = tokens.len() as u32;
            let draw = Draw { seed: s.seed, stream: stream(text), candidate, position };
            tokens.push(script.next(text, &tokens, draw.uniform(), candidate));
        }
        tokens
    };
    let mut beams: Vec<Vec<u32>> = Vec::new();
    let mut best_gains = Vec::new();
    loop {
        let mut pool: Vec<Vec<u32>> = Vec::new();
        if best_gains.is_empty() {
            pool.extend((0..s.beam_width * s.successors).map(|c| chunk(&[], c as u32)));
        } else {
            for (j, beam) in beams.iter().enumerate() {
                if ended(beam) {
                    pool.push(beam.clone());
                } else {
                    pool.extend(
                        (0..s.successors).map(|k| chunk(beam, (j * s.successors + k) as u32)),
                    );
                }
            }
        }
        let mut unique: Vec<Vec<u32>> = Vec::new();
        for tokens in pool {
            if !unique.contains(&tokens) && !judge.loses(&tokens) {
                unique.push(tokens);
            }
        }
        unique.sort_by(|a, b| judge.gain(b).partial_cmp(&judge.gain(a)).unwrap());
        unique.truncate(s.beam_width);
        best_gains.push(judge.gain(unique.first()?));
        beams = unique;
        if beams.iter().all(|beam| ended(beam)) {
            return Some((beams.swap_remove(0), best_gains));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Goal: for any W, K, L, limit, seed and script, the answer is brute force's; also where the guide cannot
    /// read some of the candidates, which lose, and the search fails only if none is left.
    #[test]
    fn search_equals_brute_force(
        w in 1..5usize, k in 1..5usize, l in prop::option::of(1..6usize), limit in 1..20usize,
        vocab in 1..7u32, seed in any::<u64>(), salt in any::<u64>(), text in "[a-z]{1,8}",
        unreadable in prop::sample::select(vec![0, 2, 3, 9]),
    ) {
        let script = Script::new(vocab, Pick::Random);
        let judge = Judge { salt, unreadable, ..Judge::default() };
        let settings = settings(w, k, l, limit, seed);
        let expected = brute_force(&script, &judge, &text, &settings);
        let mut scheduler = Scheduler::new(script, judge, 1);
        scheduler.submit(0, &prompt(&text), settings).unwrap();
        let result = run_all(scheduler).remove(0).result;
        let Some((tokens, best_gains)) = expected else {
            let error = result.unwrap_err().to_string();
            prop_assert!(error.contains("context holds 100 tokens"), "{}", error);
            return Ok(());
        };
        let outcome = result.unwrap();
        prop_assert_eq!(&outcome.response.tokens, &tokens);
        let best = |chunk: &Chunk| chunk.candidates.iter().find(|c| c.rank == Some(0))?.gain;
        let traced: Vec<f64> = outcome.trace.iter().map(|chunk| best(chunk).unwrap()).collect();
        prop_assert_eq!(traced, best_gains, "the best of every step");
        for candidate in outcome.trace.iter().flat_map(|chunk| &chunk.candidates) {
            prop_assert_eq!(candidate.gain.is_none(), candidate.lost.is_some());
            prop_assert!(candidate.lost.is_none() || candidate.rank.is_none());
        }
    }

    /// Goal: the same bytes alone, among 32 others, and whatever the others are.
    #[test]
    fn a_search_does_not_notice_its_neighbours(seed in any::<u64>(), in_flight in 1..40usize) {
        let script = Script::new(5, Pick::Random);
        let jobs: Vec<(String, Settings)> = (0..33)
            .map(|i| {
                let l = [Some(1), Some(3), Some(7), None][i % 4];
                (format!("prompt {i}"), settings(1 + i % 3, 1 + i % 4, l, 5 + i, seed))
            })
            .collect();
        let mut scheduler = Scheduler::new(script.clone(), Judge::default(), in_flight);
        for (id, (text, settings)) in jobs.iter().enumerate() {
            scheduler.submit(id, &prompt(text), settings.clone()).unwrap();
        }
        for (done, (text, settings)) in run_all(scheduler).into_iter().zip(jobs) {
            let alone = run(script.clone(), Judge::default(), &text, settings);
            let together = done.result.unwrap();
            prop_assert_eq!(together.response, alone.response);
            prop_assert_eq!(
                serde_json::to_string(&together.trace).unwrap(),
                serde_json::to_string(&alone.trace).unwrap()
            );
        }
    }
}

/// A script that keeps its searches waiting, each on its own, and loses some.
struct Hesitant {
    script: Script,
    asked: u32,
}

impl Proposer for Hesitant {
    type Prompt = String;
    type State = String;

    fn reader(&self) -> Reader<String> {
        self.script.reader()
    }

    fn pages_needed(&self, _: &String, _: &Lifetime) -> Vec<usize> {
        vec![]
    }

    fn page_capacity(&self) -> Vec<usize> {
        vec![]
    }

    fn whole_chunks(&self) -> bool {
        true
    }

    fn open(&mut self, prompts: &[&String]) -> Result<Vec<String>> {
        self.script.open(prompts)
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, String>]) -> Result<()> {
        self.asked += 1;
        for draft in drafts {
            // Each prompt is a search of its own.
            let search = draft.state.bytes().map(u32::from).sum();
            if noise(5, &[self.asked, search]) < 0.6 {
                *draft.unfinished = Some(Unfinished::Later);
            } else if draft.state.starts_with("lost") && !draft.response.tokens.is_empty() {
                let reason = "no answer".into();
                *draft.unfinished =
                    Some(Unfinished::Failed(Error::Remote { url: "x".into(), reason }));
            } else {
                self.script.extend(&mut [draft.inside(|state| state)])?;
            }
        }
        Ok(())
    }
}

/// Goal: a proposer may keep searches waiting as it likes: the answers are those of one that does
/// not, and a search that it loses is the only one lost.
#[test]
fn a_proposer_may_keep_searches_waiting() {
    let script = Script::new(6, Pick::Random);
    let mut lost = 0;
    for seed in 0..40 {
        let hesitant = Hesitant { script: script.clone(), asked: seed as u32 * 1000 };
        let mut scheduler = Scheduler::new(hesitant, Judge::default(), 5).with_stride(2);
        let prompts: Vec<String> = (0..6).map(|i| format!("{i}")).chain(["lost".into()]).collect();
        let shape = |i: usize| settings(1 + i % 3, 1 + i % 4, Some(2 + i % 5), 11, seed);
        for (i, text) in prompts.iter().enumerate() {
            scheduler.submit(i, &prompt(text), shape(i)).unwrap();
        }
        let mut finished = Vec::new();
        while scheduler.pending() > 0 {
            finished.extend(scheduler.tick().unwrap());
        }
        finished.sort_by_key(|done| done.id);
        for (i, done) in finished.into_iter().enumerate() {
            let alone = run(script.clone(), Judge::default(), &prompts[i], shape(i));
            match done.result {
                Ok(outcome) => assert_eq!(outcome.response, alone.response),
                Err(error) => {
                    assert_eq!((i, error.to_string().as_str()), (6, "x: no answer"));
                    lost += 1;
                }
            }
        }
    }
    assert!(lost > 20, "only {lost} of 40 were lost");
}

/// Goal: where the beams hold every continuation, the answer is the best of all texts.
#[test]
fn a_search_wide_enough_finds_the_best_of_all_texts() {
    let (vocab, limit) = (3u32, 4usize);
    for salt in 0..20 {
        let judge = Judge { salt, ..Judge::default() };
        let script = Script::new(vocab, Pick::Enumerate);
        let w = (vocab as usize).pow(limit as u32);
        let outcome =
            run(script, judge.clone(), "x", settings(w, vocab as usize, Some(1), limit, 0));
        let mut texts: Vec<Vec<u32>> = vec![vec![]];
        let mut ended: Vec<Vec<u32>> = Vec::new();
        for _ in 0..limit {
            let longer: Vec<Vec<u32>> = texts
                .iter()
                .flat_map(|text| (0..vocab).map(|token| [text.as_slice(), &[token]].concat()))
                .collect();
            let (done, live) = longer.into_iter().partition(|text| text.last() == Some(&0));
            ended.extend::<Vec<_>>(done);
            texts = live;
        }
        ended.extend(texts);
        assert_eq!(ended.len(), 1 + 2 + 4 + 8 + 16);
        let best =
            ended.iter().max_by(|a, b| judge.gain(a).total_cmp(&judge.gain(b))).unwrap().clone();
        assert_eq!(outcome.response.tokens, best);
    }
}

/// Goal: best-of-N and sampling are settings: one step, N candidates, the best gain.
#[test]
fn best_of_n_is_one_step_without_a_chunk_limit() {
    let judge = Judge { salt: 3, ..Judge::default() };
    let outcome = run(Script::new(6, Pick::Random), judge, "y", settings(1, 16, None, 30, 9));
    assert_eq!(outcome.trace.len(), 1);
    let candidates = &outcome.trace[0].candidates;
    assert_eq!(candidates.len(), 16);
    assert!(candidates.iter().all(|c| c.finish_reason.is_some()));
    let best = candidates.iter().map(|c| c.gain.unwrap()).fold(f64::MIN, f64::max);
    assert_eq!(outcome.score.gain, best);
}

/// Goal: equal candidates are kept and scored once, and the first of them stands.
#[test]
fn equal_candidates_are_kept_once() {
    let outcome = run(
        Script::new(9, Pick::Constant(2)),
        Judge::default(),
        "z",
        settings(3, 2, Some(2), 4, 0),
    );
    let first = &outcome.trace[0].candidates;
    assert_eq!(first.len(), 6);
    assert_eq!(first[0].rank, Some(0));
    assert!(first[1..].iter().all(|c| c.duplicate_of == Some(0) && c.rank.is_none()));
    assert_eq!(outcome.trace[1].candidates.len(), 2, "one beam was left to fork");
    assert_eq!(outcome.response.tokens, [2; 4]);
    assert_eq!(outcome.finish, Finish::Length);
}

/// Goal: ties keep candidate order.
#[test]
fn ties_keep_candidate_order() {
    let judge = Judge { indifferent: true, ..Judge::default() };
    let outcome = run(Script::new(7, Pick::Enumerate), judge, "t", settings(2, 3, Some(1), 1, 0));
    let ranks: Vec<_> = outcome.trace[0].candidates.iter().map(|c| c.rank).collect();
    assert_eq!(ranks, [Some(0), Some(1), None, None, None, None]);
    assert_eq!(outcome.response.tokens, [0], "the first candidate");
}

/// Goal: a finished hypothesis stands in the pool once, or K times as in the paper's code.
#[test]
fn a_finished_hypothesis_is_repeated_only_in_compat_mode() {
    // Candidate 0 ends at once; all gains are equal, so it is always kept first.
    let judge = Judge { indifferent: true, ..Judge::default() };
    let script = Script::new(4, Pick::Enumerate);
    let plain = settings(2, 2, Some(1), 3, 0);
    let outcome = run(script.clone(), judge.clone(), "f", plain.clone());
    assert_eq!(outcome.trace[1].candidates.len(), 1 + 2, "the finished one, and two forks");
    let parents: Vec<_> = outcome.trace[1].candidates.iter().map(|c| c.parent).collect();
    assert_eq!(parents, [Some(0), Some(1), Some(1)]);

    let compat = run(script, judge, "f", Settings { compat: true, ..plain });
    let parents: Vec<_> = compat.trace[1].candidates.iter().map(|c| c.parent).collect();
    assert_eq!(parents, [Some(0), Some(1), Some(0), Some(1)], "beams in turn, twice");
}

/// Goal: a finished hypothesis is never scored again.
#[test]
fn finished_hypotheses_are_scored_once() {
    let judge = Judge { indifferent: true, ..Judge::default() };
    let mut scheduler = Scheduler::new(Script::new(4, Pick::Enumerate), judge, 1);
    scheduler.submit(0, &prompt("f"), settings(2, 2, Some(1), 3, 0)).unwrap();
    while scheduler.pending() > 0 {
        scheduler.tick().unwrap();
    }
    // Step 1: 4 candidates; then one beam has ended and two forks of the other are scored, twice.
    assert_eq!(scheduler.guide().scored, 4 + 2 + 2);
}

/// Goal: a stop string ends a response, is scored, and does not stand in the answer.
#[test]
fn a_stop_string_ends_a_response() {
    let stop = StopStrings::new(vec!["bb".into()]).unwrap();
    let settings = Settings { stop, ..settings(1, 1, Some(3), 9, 0) };
    let outcome = run(Script::new(9, Pick::Constant(2)), Judge::default(), "s", settings);
    assert_eq!(outcome.finish, Finish::Stop);
    assert_eq!(outcome.response.tokens, [2, 2]);
    assert_eq!(outcome.response.text, b"bb");
    assert_eq!(outcome.response.to_text(), "");
}

/// Goal: a bad gain fails its own search and no other.
#[test]
fn a_bad_gain_fails_its_own_search() {
    let judge = Judge { poison: Some(3), ..Judge::default() };
    let mut scheduler = Scheduler::new(Script::new(4, Pick::Enumerate), judge, 8);
    // Four candidates reach token 3, two do not.
    scheduler.submit(0, &prompt("a"), settings(2, 2, Some(1), 3, 0)).unwrap();
    scheduler.submit(1, &prompt("b"), settings(1, 2, Some(1), 3, 0)).unwrap();
    let finished = run_all(scheduler);
    assert!(finished[0].result.as_ref().unwrap_err().to_string().contains("not a finite number"));
    assert!(finished[1].result.is_ok());
}

/// Goal: of sixteen candidates those that the guide cannot read lose, and so do their repetitions; the trace
/// says so, in both kinds of search, and the best of the others is the answer.
#[test]
fn a_candidate_that_cannot_be_read_loses_alone() {
    let judge = Judge { salt: 5, unreadable: 3, ..Judge::default() };
    for compat in [false, true] {
        let best_of_16 = Settings { compat, ..settings(1, 16, None, 3, 9) };
        // Few different responses, so that some are equal.
        let outcome = run(Script::new(3, Pick::Random), judge.clone(), "y", best_of_16);
        let candidates = &outcome.trace[0].candidates;
        let (lost, stand): (Vec<_>, Vec<_>) = candidates.iter().partition(|c| c.lost.is_some());
        assert!(lost.len() > 1 && stand.len() > 1, "{} of 16 are lost", lost.len());
        assert_eq!(
            compat,
            lost.iter().all(|c| c.duplicate_of.is_none()),
            "duplicates are lost too"
        );
        for candidate in &lost {
            assert_eq!((candidate.gain, candidate.rank), (None, None));
            assert!(candidate.lost.as_ref().unwrap().contains("context holds 100 tokens"));
        }
        let best = stand.iter().map(|c| c.gain.unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(outcome.score.gain, best);
        for candidate in candidates {
            let json = serde_json::to_value(candidate).unwrap();
            assert_eq!(
                json.get("lost").is_some(),
                candidate.lost.is_some(),
                "only where it is lost"
            );
            assert_eq!(json["gain"].is_null(), candidate.lost.is_some());
        }
    }
}

/// Goal: where a model is broken a search fails, whatever else of its candidates is lost.
#[test]
fn a_bad_gain_is_not_a_lost_candidate() {
    let judge = Judge { poison: Some(2), unreadable: 2, ..Judge::default() };
    let mut scheduler = Scheduler::new(Script::new(6, Pick::Enumerate), judge, 1);
    scheduler.submit(0, &prompt("a"), settings(1, 6, Some(1), 3, 0)).unwrap();
    let error = run_all(scheduler).remove(0).result.unwrap_err().to_string();
    assert!(error.contains("not a finite number"), "{error}");
}

/// Goal: searches wait for pages rather than fail, and one that never fits is refused at once.
#[test]
fn searches_wait_for_pages() {
    let settings = settings(2, 2, Some(4), 20, 1);
    let script = Script { pages: settings.lifetime().pages(1) + 1, ..Script::new(5, Pick::Random) };
    let mut scheduler = Scheduler::new(script, Judge::default(), 16);
    for id in 0..5 {
        scheduler.submit(id, &prompt(&format!("{id}")), settings.clone()).unwrap();
    }
    let long = "far too long a prompt for the few pages that there are";
    let error = scheduler.submit(9, &prompt(long), settings).unwrap_err().to_string();
    assert!(error.contains("the whole cache has"), "{error}");
    let finished = run_all(scheduler);
    assert_eq!(finished.iter().map(|done| done.id).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(finished.iter().all(|done| done.result.is_ok()));
}

/// Goal: settings that cannot work are refused with the flag's name.
#[test]
fn absurd_settings_are_refused() {
    let good = || settings(2, 2, Some(4), 20, 1);
    let mut cases = vec![
        (Settings { beam_width: 0, ..good() }, "--beam-width"),
        (Settings { successors: 0, ..good() }, "--successors"),
        (Settings { chunk_len: Some(0), ..good() }, "--chunk-len"),
        (Settings { max_new_tokens: 0, ..good() }, "--max-new-tokens"),
        (Settings { beam_width: usize::MAX, successors: 3, ..good() }, "--beam-width"),
        (Settings { max_new_tokens: usize::MAX, ..good() }, "--max-new-tokens"),
    ];
    let mut with = |change: fn(&mut Settings), flag| {
        let mut settings = good();
        change(&mut settings);
        cases.push((settings, flag));
    };
    with(|s| s.sampling.temperature = f32::NAN, "--temperature");
    with(|s| s.sampling.temperature = -1.0, "--temperature");
    with(|s| (s.sampling.temperature, s.compat) = (0.0, true), "--temperature");
    with(|s| s.sampling.top_p = 0.0, "--top-p");
    with(|s| s.sampling.top_p = 1.5, "--top-p");
    for (settings, flag) in cases {
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.starts_with(flag), "{error}");
    }
}
