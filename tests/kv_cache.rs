//! The cache under random forks, appends, rollbacks and drops, held against plain vectors.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;
use trimtab::kv_cache::{Lifetime, PAGE_LEN, PagePool, Sequence};

#[derive(Clone, Debug)]
enum Step {
    Open,
    Fork(usize),
    Append(usize, usize),
    Truncate(usize, usize),
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::Open),
        3 => any::<usize>().prop_map(Step::Fork),
        6 => (any::<usize>(), 0..40usize).prop_map(|(who, n)| Step::Append(who, n)),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(who, to)| Step::Truncate(who, to)),
        2 => any::<usize>().prop_map(Step::Drop),
    ];
    prop::collection::vec(step, 0..60)
}

/// A sequence and what its slots must hold.
struct Pair {
    sequence: Sequence,
    expected: Vec<u32>,
}

/// Memory as a device would have it: page → tokens.
#[derive(Default)]
struct Memory(HashMap<u32, [u32; PAGE_LEN]>);

impl Memory {
    fn append(&mut self, pair: &mut Pair, tokens: &[u32]) -> bool {
        let start = pair.sequence.len();
        match pair.sequence.append(tokens.len()) {
            Err(_) => return false,
            Ok(None) => {}
            Ok(Some(copy)) => {
                let page = self.0.get(&copy.from).copied().unwrap_or_default();
                self.0.insert(copy.to, page);
            }
        }
        let pages: Vec<u32> = pair.sequence.pages().collect();
        for (i, &token) in tokens.iter().enumerate() {
            let at = start + i;
            self.0.entry(pages[at / PAGE_LEN]).or_default()[at % PAGE_LEN] = token;
        }
        pair.expected.extend(tokens);
        true
    }

    fn read(&self, sequence: &Sequence) -> Vec<u32> {
        let pages: Vec<u32> = sequence.pages().collect();
        (0..sequence.len()).map(|at| self.0[&pages[at / PAGE_LEN]][at % PAGE_LEN]).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Goal: whatever is done, each sequence reads back its own tokens and no page is lost.
    #[test]
    fn sequences_behave_like_plain_vectors(steps in steps(), capacity in 1..40usize) {
        let pool = PagePool::new(capacity);
        let mut memory = Memory::default();
        let mut pairs: Vec<Pair> = Vec::new();
        let mut next_token = 0;
        for step in steps {
            let count = pairs.len();
            match step {
                Step::Open => pairs.push(Pair { sequence: pool.sequence(), expected: vec![] }),
                Step::Fork(who) if count > 0 => {
                    let Pair { sequence, expected } = &pairs[who % count];
                    let fork = Pair { sequence: sequence.clone(), expected: expected.clone() };
                    pairs.push(fork);
                }
                Step::Append(who, n) if count > 0 => {
                    let tokens: Vec<u32> = (next_token..next_token + n as u32).collect();
                    next_token += n as u32;
                    let pair = &mut pairs[who % count];
                    let (len, free) = (pair.sequence.len(), pool.free());
                    let pages: Vec<u32> = pair.sequence.pages().collect();
                    if !memory.append(pair, &tokens) {
                        // Out of pages: nothing may have changed.
                        prop_assert_eq!(len, pair.sequence.len());
                        prop_assert_eq!(free, pool.free());
                        prop_assert_eq!(pages, pair.sequence.pages().collect::<Vec<_>>());
                    }
                }
                Step::Truncate(who, to) if count > 0 => {
                    let pair = &mut pairs[who % count];
                    let to = to % (pair.expected.len() + 1);
                    pair.sequence.truncate(to);
                    pair.expected.truncate(to);
                }
                Step::Drop(who) if count > 0 => drop(pairs.swap_remove(who % count)),
                _ => {}
            }
            for pair in &pairs {
                prop_assert_eq!(memory.read(&pair.sequence), pair.expected.clone());
            }
            let mut owned: Vec<u32> = pairs.iter().flat_map(|p| p.sequence.pages()).collect();
            owned.sort_unstable();
            owned.dedup();
            prop_assert_eq!(owned.len() + pool.free(), capacity, "every page is owned or free");
        }
        drop(pairs);
        prop_assert_eq!(pool.free(), capacity, "no page leaked");
    }
}

/// Goal: a shared last page is copied by all its owners but the last.
#[test]
fn a_shared_last_page_is_copied_before_it_is_written() {
    let pool = PagePool::new(8);
    let mut parent = pool.sequence();
    parent.append(PAGE_LEN + 1).unwrap();
    let mut fork = parent.clone();
    assert_eq!(fork.shared_pages(), 2);
    let copy = fork.append(1).unwrap().expect("the page is shared");
    assert_eq!(copy.from, parent.pages().nth(1).unwrap());
    assert_eq!(copy.to, fork.pages().nth(1).unwrap());
    assert_eq!(parent.append(1).unwrap(), None, "the parent is the only owner now");
    assert_eq!(pool.free(), 8 - 3);
}

/// Goal: a full shared page is never copied, since nothing is written to it.
#[test]
fn a_full_page_stays_shared() {
    let pool = PagePool::new(4);
    let mut parent = pool.sequence();
    parent.append(PAGE_LEN).unwrap();
    let mut fork = parent.clone();
    assert_eq!(fork.append(1).unwrap(), None);
    assert_eq!(fork.shared_pages(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Goal: a search that reserved its lifetime never runs out of them, whatever lives on.
    #[test]
    fn the_reservation_covers_a_whole_search(
        prompt in 0..70usize, response in 1..70usize, chunk in 1..40usize,
        beams in 1..5usize, successors in 1..5usize, picks in prop::collection::vec(any::<usize>(), 400),
    ) {
        let life = Lifetime { response, chunk, beams, candidates: beams * successors };
        let needed = life.pages(prompt);
        let pool = PagePool::new(needed);
        let mut root = pool.sequence();
        root.append(prompt).unwrap();
        let mut kept = vec![root];
        let (mut done, mut pick) = (0, picks.into_iter().cycle());
        while done < response {
            let step = chunk.min(response - done);
            let mut candidates: Vec<Sequence> = if done == 0 {
                (0..beams * successors).map(|_| kept[0].clone()).collect()
            } else {
                kept.iter().flat_map(|beam| vec![beam.clone(); successors]).collect()
            };
            // The beams themselves may outlive the whole step.
            for candidate in &mut candidates {
                for _ in 0..step {
                    candidate.append(1).expect("within the reservation");
                }
            }
            kept = (0..beams)
                .map(|_| candidates[pick.next().unwrap() % candidates.len()].clone())
                .collect();
            done += step;
        }
        drop(kept);
        prop_assert_eq!(pool.free(), needed);
    }
}
