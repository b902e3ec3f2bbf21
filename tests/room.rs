//! A guide with another tokenizer and the pages that are reserved for it.
#![allow(clippy::unwrap_used)]

mod toy;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use toy::{Typist, settings};
use trimtab::backend::cpu::CpuBackend;
use trimtab::engine::{Limits, Pair};
use trimtab::error::Result;
use trimtab::guide::{Guide, GuideTokens, PairGuide, Score, WeightedPair};
use trimtab::proposer::Prompt;
use trimtab::scheduler::Scheduler;
use trimtab::search::{Outcome, Settings};
use trimtab::text::{Bos, PromptFormat, Template, Tokenizer};

const PROMPT: &str = "The film opens on a quiet harb";

/// What the base model writes: whole words at a time, characters that the guide spells byte by
/// byte, halves of characters, and letters that change how the guide reads what stands before.
fn typist() -> Typist {
    let keys: [&[u8]; 8] = [
        "our".as_bytes(),
        " a storm and silence".as_bytes(),
        "電影".as_bytes(),
        "🎬👩‍👧".as_bytes(),
        b"\xe4\xbd",
        b"\xa0",
        b"e",
        b" ",
    ];
    Typist { keys: (1..).zip(keys.map(<[u8]>::to_vec)).collect(), eos: 0 }
}

/// Twins: those that know 256 positions, and those that know 128.
#[derive(Clone, Copy)]
enum Twins {
    Llama,
    Gpt2,
}

/// A guide whose cache has so many pages.
fn guide(twins: Twins, pages: usize) -> (PairGuide<CpuBackend>, Arc<Mutex<Pair<CpuBackend>>>) {
    let folder = |name| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let [tuned, untuned] = match twins {
        Twins::Llama => ["llama_tuned", "llama"].map(folder),
        Twins::Gpt2 => ["gpt2_tuned", "gpt2"].map(folder),
    };
    let backend = Arc::new(CpuBackend::new(Some(1)).unwrap());
    let limits = Limits { pages, rows: 256, logit_rows: 1 };
    let pair = Pair::open(&backend, &tuned, &untuned, limits, 0).unwrap();
    let pair = Arc::new(Mutex::new(pair));
    let tokenizer = Arc::new(Tokenizer::open(&untuned).unwrap());
    let (template, bos) = (Template::default(), Bos::Never);
    let weighted = WeightedPair {
        pair: pair.clone(),
        weight: 1.0,
        eos: tokenizer.eos(),
        // A broken byte becomes a U+FFFD.
        longest_token: "🎬👩‍👧".len(),
        format: PromptFormat { tokenizer, template, chat: false, system: None, date: None, bos },
        tokens: GuideTokens::Text,
    };
    (PairGuide::new(vec![weighted], None), pair)
}

/// The pages that a search reserves.
fn pages_needed(twins: Twins, settings: &Settings) -> usize {
    let (guide, _) = guide(twins, 1024);
    let life = settings.lifetime();
    let prompt = guide.prepare(&Prompt::Text(PROMPT.into()), &life).unwrap();
    guide.pages_needed(&prompt, &life)[0]
}

/// Runs `count` equal searches (but for the seed) at once.
fn run(twins: Twins, pages: usize, count: usize, settings: &Settings) -> Vec<Result<Outcome>> {
    let (guide, pair) = guide(twins, pages);
    let mut scheduler = Scheduler::new(typist(), guide, count);
    for id in 0..count {
        let settings = Settings { seed: settings.seed + id as u64, ..settings.clone() };
        scheduler.submit(id, &Prompt::Text(PROMPT.into()), settings).unwrap();
    }
    let mut outcomes: Vec<Option<Result<Outcome>>> = (0..count).map(|_| None).collect();
    while scheduler.pending() > 0 {
        for done in scheduler.tick().unwrap() {
            outcomes[done.id] = Some(done.result);
        }
        let pool = scheduler.pools().pop().unwrap();
        assert!(pool.capacity - pool.free <= pool.reserved, "more pages than were reserved");
    }
    let pages = &pair.lock().unwrap().pages;
    assert_eq!(pages.free(), pages.capacity(), "pages were lost");
    outcomes.into_iter().map(Option::unwrap).collect()
}

/// Goal: with exactly the pages that were reserved, searches whose texts are many times as long
/// in the guide's tokens as in the base model's never run out of them, alone or with others, and
/// their answers and scores are those of a cache without limits.
#[test]
fn an_admitted_search_never_fails_for_pages() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = (1..4usize, 1..4usize, prop::option::of(1..5usize), 1..9usize, 0..1000u64);
    let mut long = 0;
    for _ in 0..40 {
        let tree = proptest::strategy::Strategy::new_tree(&strategy, &mut runner).unwrap();
        let (w, k, l, limit, seed) = proptest::strategy::ValueTree::current(&tree);
        let settings = settings(w, k, l, limit, seed);
        let needed = pages_needed(Twins::Llama, &settings);
        let run = |pages, count| run(Twins::Llama, pages, count, &settings);
        let tight: Vec<_> = run(needed, 1).into_iter().chain(run(2 * needed, 2)).collect();
        let ample = run(4096, 2);
        for (tight, ample) in tight.iter().zip([&ample[0], &ample[0], &ample[1]]) {
            let tight = tight.as_ref().expect("no search fails for pages");
            let ample = ample.as_ref().unwrap();
            assert_eq!(tight.response, ample.response);
            assert_eq!(tight.score, ample.score, "to the bit");
            let Score { tokens, .. } = tight.score;
            long += usize::from(tokens > 2 * limit);
        }
    }
    assert!(long > 20, "only {long} texts were more than twice as long");
}

/// Goal: candidates that outgrow the guide's context lose, each at its own step, and the others are scored as in
/// a cache without limits; their pages come back, and none is ever held beyond what was reserved. A search
/// fails only where no candidate is left.
#[test]
fn a_candidate_that_is_lost_gives_its_pages_back() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = (1..4usize, 1..4usize, prop::option::of(1..15usize), 30..60usize, 0..1000u64);
    let (mut lost, mut answered, mut failed) = (0, 0, 0);
    for _ in 0..40 {
        let tree = proptest::strategy::Strategy::new_tree(&strategy, &mut runner).unwrap();
        let (w, k, l, limit, seed) = proptest::strategy::ValueTree::current(&tree);
        let settings = settings(w, k, l, limit, seed);
        let needed = pages_needed(Twins::Gpt2, &settings);
        let run = |pages, count| run(Twins::Gpt2, pages, count, &settings);
        let tight: Vec<_> = run(needed, 1).into_iter().chain(run(2 * needed, 2)).collect();
        let ample = run(8192, 2);
        for (tight, ample) in tight.iter().zip([&ample[0], &ample[0], &ample[1]]) {
            let (tight, ample) = match (tight, ample) {
                (Ok(tight), Ok(ample)) => (tight, ample),
                (Err(tight), Err(ample)) => {
                    assert_eq!(tight.to_string(), ample.to_string());
                    assert!(tight.to_string().contains("context holds 128 tokens"), "{tight}");
                    failed += 1;
                    continue;
                }
                (tight, ample) => panic!("{tight:?} with few pages, {ample:?} with many"),
            };
            assert_eq!(
                (&tight.response, tight.score),
                (&ample.response, ample.score),
                "to the bit"
            );
            let traces =
                [tight, ample].map(|outcome| serde_json::to_value(&outcome.trace).unwrap());
            assert_eq!(traces[0], traces[1]);
            let candidates = || tight.trace.iter().flat_map(|chunk| &chunk.candidates);
            assert!(candidates().all(|c| c.lost.is_none() || c.rank.is_none()));
            let here = candidates().filter(|c| c.lost.is_some()).count();
            lost += here;
            answered += usize::from(here > 0);
        }
    }
    assert!(
        lost > 50 && answered > 20 && failed > 5,
        "{lost} lost, {answered} answered, {failed} failed"
    );
}
