//! Many searches at once: cancelling, watching, waiting, and who owns which page.
#![allow(clippy::unwrap_used)]

mod toy;

use std::collections::BTreeMap;

use proptest::prelude::*;
use toy::{Judge, Pick, Script, settings};
use trimtab::error::Result;
use trimtab::kv_cache::{PagePool, Sequence};
use trimtab::proposer::{Draft, Lifetime, Prompt, Proposer, Reader, StopStrings};
use trimtab::scheduler::{Progress, Scheduler};
use trimtab::search::{Outcome, Settings};

/// The script with a cache: a state owns the pages of its prompt and of what it has written, as a
/// model's would.
struct Paged {
    script: Script,
    pages: PagePool,
}

impl Paged {
    fn new(pages: usize) -> Self {
        Self { script: Script::new(5, Pick::Random), pages: PagePool::new(pages) }
    }
}

#[derive(Clone)]
struct PagedState {
    text: String,
    sequence: Sequence,
}

impl Proposer for Paged {
    type Prompt = String;
    type State = PagedState;

    fn reader(&self) -> Reader<String> {
        self.script.reader()
    }

    fn pages_needed(&self, prompt: &String, life: &Lifetime) -> Vec<usize> {
        self.script.pages_needed(prompt, life)
    }

    fn page_capacity(&self) -> Vec<usize> {
        vec![self.pages.capacity()]
    }

    fn pages_free(&self) -> Vec<usize> {
        vec![self.pages.free()]
    }

    fn prompt_tokens(&self, prompt: &String) -> Option<usize> {
        Some(prompt.len())
    }

    fn open(&mut self, prompts: &[&String]) -> Result<Vec<PagedState>> {
        let open = |prompt: &&String| {
            let mut sequence = self.pages.sequence();
            sequence.append(prompt.len())?;
            Ok(PagedState { text: prompt.to_string(), sequence })
        };
        prompts.iter().map(open).collect()
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, PagedState>]) -> Result<()> {
        for draft in drafts {
            let before = draft.response.tokens.len();
            self.script.extend(&mut [draft.inside(|state| &mut state.text)])?;
            for _ in before..draft.response.tokens.len() {
                draft.state.sequence.append(1)?;
            }
        }
        Ok(())
    }
}

type Toy = Scheduler<Paged, Judge>;

fn prompt(text: &str) -> Prompt {
    Prompt::Text(text.into())
}

fn all_pages_are_free(scheduler: &Toy) -> bool {
    scheduler.pools().iter().all(|pool| pool.free == pool.capacity && pool.reserved == 0)
}

fn alone(text: &str, settings: Settings) -> Outcome {
    let mut scheduler = Scheduler::new(Paged::new(1 << 16), Judge::default(), 1);
    scheduler.submit(0, &prompt(text), settings).unwrap();
    loop {
        if let Some(done) = scheduler.tick().unwrap().pop() {
            return done.result.unwrap();
        }
    }
}

/// A job: text, W, K, L, limit; whether it is cancelled, and after how many ticks.
type Job = (String, usize, usize, Option<usize>, usize, Option<usize>);

fn job() -> impl Strategy<Value = Job> {
    (
        "[a-z]{1,40}",
        1..4usize,
        1..4usize,
        prop::option::of(1..9usize),
        1..30usize,
        prop::option::of(0..12usize),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Goal: whoever is cancelled, and when, no page is lost, and the others answer as if they
    /// had been alone.
    #[test]
    fn cancelling_leaks_no_page_and_disturbs_nobody(
        jobs in prop::collection::vec(job(), 1..20),
        in_flight in 1..8usize, stride in 1..40usize, seed in any::<u64>(),
        small_first in any::<bool>(),
    ) {
        let settings_of = |job: &Job| settings(job.1, job.2, job.3, job.4, seed);
        // As tight as can be: some search just fits.
        let needed = |job: &Job| settings_of(job).lifetime().pages(job.0.len());
        let pages = jobs.iter().map(needed).max().unwrap();
        let mut scheduler =
            Scheduler::new(Paged::new(pages), Judge::default(), in_flight).with_stride(stride);
        if small_first {
            scheduler = scheduler.with_small_first();
        }
        for (id, job) in jobs.iter().enumerate() {
            let tokens = scheduler.submit(id, &prompt(&job.0), settings_of(job)).unwrap();
            prop_assert_eq!(tokens, Some(job.0.len()));
        }
        let mut outcomes = BTreeMap::new();
        let mut cancelled = 0;
        for tick in 0.. {
            for (id, _) in jobs.iter().enumerate().filter(|(_, job)| job.5 == Some(tick)) {
                let finished = outcomes.contains_key(&id);
                prop_assert_eq!(scheduler.cancel(id), !finished, "what is over cannot be cancelled");
                cancelled += usize::from(!finished);
            }
            if scheduler.pending() == 0 {
                break;
            }
            for done in scheduler.tick().unwrap() {
                outcomes.insert(done.id, done.result.unwrap());
            }
            for pool in scheduler.pools() {
                prop_assert!(pool.capacity - pool.free <= pool.reserved, "{:?}", pool);
            }
        }
        prop_assert!(all_pages_are_free(&scheduler));
        prop_assert_eq!(outcomes.len() + cancelled, jobs.len());
        for (id, outcome) in outcomes {
            let alone = alone(&jobs[id].0, settings_of(&jobs[id]));
            prop_assert_eq!(outcome.response, alone.response);
            prop_assert_eq!(
                serde_json::to_string(&outcome.trace).unwrap(),
                serde_json::to_string(&alone.trace).unwrap()
            );
        }
    }

    /// Goal: what is said to be agreed on only grows and is what the answer begins with, also
    /// where a stop string is half written; and the steps come one by one, as in the outcome.
    #[test]
    fn what_is_agreed_is_never_taken_back(
        w in 1..4usize, k in 1..4usize, l in prop::option::of(1..9usize), stride in 1..9usize,
        stop in prop::collection::vec("[a-d]{1,3}", 0..3), seed in any::<u64>(),
    ) {
        let stop = StopStrings::new(stop).unwrap();
        let settings = Settings { stop, ..settings(w, k, l, 30, seed) };
        let mut scheduler =
            Scheduler::new(Paged::new(1 << 12), Judge::default(), 1).with_stride(stride);
        scheduler.submit(7, &prompt("watched"), settings).unwrap();
        let mut agreed: Vec<u8> = Vec::new();
        let mut chunks = 0;
        let outcome = loop {
            if let Some(done) = scheduler.tick().unwrap().pop() {
                break done.result.unwrap();
            }
            let progress = scheduler.progress().next().unwrap();
            prop_assert_eq!(progress.id, 7);
            prop_assert!(progress.agreed.starts_with(&agreed));
            agreed = progress.agreed.to_vec();
            prop_assert!(progress.chunks.len() >= chunks);
            chunks = progress.chunks.len();
        };
        prop_assert!(outcome.response.to_text().as_bytes().starts_with(&agreed));
        prop_assert!(chunks < outcome.trace.len());
    }
}

/// Goal: a single candidate is agreed with itself, so a sampled answer is seen as it grows.
#[test]
fn a_single_candidate_is_seen_as_it_grows() {
    let mut script = Paged::new(64);
    script.script.pick = Pick::Constant(1);
    let mut scheduler = Scheduler::new(script, Judge::default(), 1).with_stride(2);
    scheduler.submit(0, &prompt("x"), settings(1, 1, None, 7, 0)).unwrap();
    let mut seen = Vec::new();
    while scheduler.pending() > 0 {
        scheduler.tick().unwrap();
        seen.extend(scheduler.progress().map(|progress| progress.agreed.len()));
    }
    assert_eq!(seen, [2, 4, 6]);
}

/// Goal: nobody is overtaken, not even by a small search that would fit while a large one waits.
#[test]
fn the_first_one_waiting_is_never_overtaken() {
    let (small, large) = (settings(1, 1, Some(4), 8, 3), settings(2, 3, Some(4), 8, 3));
    let needed = large.lifetime().pages(1);
    let mut scheduler = Scheduler::new(Paged::new(needed), Judge::default(), 8).with_stride(1);
    let order = [small.clone(), large, small.clone(), small];
    for (id, settings) in order.into_iter().enumerate() {
        scheduler.submit(id, &prompt("x"), settings).unwrap();
    }
    assert_eq!((scheduler.waiting(), scheduler.waiting_candidates()), (4, 1 + 6 + 1 + 1));
    let mut started = Vec::new();
    while scheduler.pending() > 0 {
        let finished = scheduler.tick().unwrap();
        let running = scheduler.progress().map(|progress| progress.id);
        let seen: Vec<usize> = finished.iter().map(|done| done.id).chain(running).collect();
        started.extend(seen.into_iter().filter(|id| !started.contains(id)).collect::<Vec<_>>());
        if started.len() == 1 {
            assert_eq!(scheduler.waiting(), 3, "the third must not pass the second");
        }
    }
    started[1..].sort_unstable();
    assert_eq!(started, [0, 1, 2, 3]);
    assert!(all_pages_are_free(&scheduler));
}

/// Goal: given responses are scored among searches, without any candidate being drawn for them.
#[test]
fn given_responses_are_scored_among_searches() {
    let mut scheduler = Scheduler::new(Paged::new(64), Judge::default(), 4);
    scheduler.submit_given(5, &prompt("x"), "given".into(), true).unwrap();
    assert_eq!(scheduler.waiting_candidates(), 1);
    let done = scheduler.tick().unwrap().pop().unwrap();
    let outcome = done.result.unwrap();
    assert_eq!((done.id, outcome.response.to_text().as_str()), (5, "given"));
    assert!(outcome.trace.is_empty());
    assert_eq!(scheduler.proposer().script.drawn, 0);

    scheduler.submit(1, &prompt("x"), settings(2, 2, Some(3), 9, 1)).unwrap();
    scheduler.submit_given(2, &prompt("y"), "late".into(), false).unwrap();
    let mut finished = Vec::new();
    while scheduler.pending() > 0 {
        finished.extend(scheduler.tick().unwrap().into_iter().map(|done| done.id));
    }
    assert_eq!(finished, [2, 1]);
    assert!(all_pages_are_free(&scheduler));
}

/// Goal: the time of a tick is booked where it is spent.
#[test]
fn time_is_booked_by_phase() {
    let mut scheduler = Scheduler::new(Paged::new(64), Judge::default(), 4);
    scheduler.submit(0, &prompt("x"), settings(2, 2, Some(3), 9, 1)).unwrap();
    while scheduler.pending() > 0 {
        scheduler.tick().unwrap();
    }
    let spent = scheduler.spent();
    for phase in [spent.prefill, spent.expand, spent.score, spent.select] {
        assert!(!phase.is_zero(), "{spent:?}");
    }
}

/// Goal: a search whose steps no reader wants keeps none of them, which would grow without a bound, and answers
/// the same.
#[test]
fn steps_are_kept_only_where_they_are_read() {
    let settings = settings(3, 3, Some(1), 40, 5);
    let mut scheduler = Scheduler::new(Paged::new(10_000), Judge::default(), 2);
    let ready = scheduler.reader().search(&prompt("x"), settings).unwrap();
    scheduler.submit_ready(0, ready.clone()).unwrap();
    scheduler.submit_ready(1, ready.untraced()).unwrap();
    let mut outcomes = Vec::new();
    while scheduler.pending() > 0 {
        for finished in scheduler.tick().unwrap() {
            outcomes.push((finished.id, finished.result.unwrap()));
        }
        let kept = |progress: &Progress<'_>| progress.id == 1 && !progress.chunks.is_empty();
        assert!(!scheduler.progress().any(|progress| kept(&progress)));
    }
    outcomes.sort_by_key(|(id, _)| *id);
    let [(_, traced), (_, untraced)] = &outcomes[..] else { panic!("two searches") };
    assert!(!traced.trace.is_empty() && untraced.trace.is_empty());
    assert_eq!((&traced.response, traced.score), (&untraced.response, untraced.score));
}

/// Goal: a small search is answered in a few ticks however many large ones run and wait; a stream of small ones
/// does not stop the large ones; and all answer as if alone.
#[test]
fn small_searches_overtake_large_ones_within_a_bound() {
    let (large, small) = (settings(16, 16, Some(1), 30, 3), settings(1, 1, None, 5, 4));
    let paged = Paged { script: Script::new(26, Pick::Random), pages: PagePool::new(200_000) };
    let mut scheduler =
        Scheduler::new(paged, Judge::default(), 4).with_stride(8).with_small_first();
    let (mut waits, mut large_ended, mut ticks, mut next) = (Vec::new(), Vec::new(), 0, 100);
    for id in 0..8 {
        scheduler.submit(id, &prompt(&format!("large {id}")), large.clone()).unwrap();
    }
    scheduler.tick().unwrap();
    let mut began = BTreeMap::new();
    while large_ended.len() < 8 {
        if began.is_empty() {
            scheduler.submit(next, &prompt("small"), small.clone()).unwrap();
            began.insert(next, ticks);
            next += 1;
        }
        ticks += 1;
        assert!(ticks < 8 * 30 * 5, "the large ones do not get on");
        for done in scheduler.tick().unwrap() {
            let response = done.result.unwrap().response;
            match began.remove(&done.id) {
                Some(began) => waits.push(ticks - began),
                None => large_ended.push((done.id, response)),
            }
        }
    }
    assert!(waits.iter().all(|&ticks| ticks <= 6), "{waits:?}");
    assert!(large_ended.iter().take(4).all(|(id, _)| *id < 4), "large ones keep their order");

    // One that needs all pages is not overtaken for ever.
    let whole = settings(1, 2, Some(1), 3000, 1);
    let pages = whole.lifetime().pages(5);
    let mut scheduler = Scheduler::new(Paged::new(pages), Judge::default(), 4).with_small_first();
    scheduler.submit(0, &prompt("small"), small.clone()).unwrap();
    scheduler.submit(1, &prompt("whole"), whole).unwrap();
    for id in 2..50 {
        scheduler.submit(id, &prompt("small"), small.clone()).unwrap();
    }
    let mut order = Vec::new();
    while scheduler.pending() > 0 {
        order.extend(scheduler.tick().unwrap().into_iter().map(|done| done.id));
    }
    assert_eq!(order[..2], [0, 1], "{order:?}");
    assert_eq!(order.len(), 50);
}
