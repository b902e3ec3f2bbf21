//! Floor 6: many searches share each step of the models.
//!
//! A tick continues all candidates of all running searches up to the nearest end of a chunk;
//! those that have reached it are scored together, selected from, and either done or forked
//! again. New searches join between ticks. A search is admitted when all pages that it may ever
//! need are free, so nothing is preempted or stuck halfway; the first one waiting is never
//! overtaken. What a search answers does not depend on who else is running.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::guide::Guide;
use crate::proposer::{Prompt, Proposer};
use crate::search::{Outcome, Search, Settings};

/// Runs searches on one proposer and one guide.
pub struct Scheduler<P: Proposer, G: Guide> {
    proposer: P,
    guide: G,
    /// Searches that run at the same time at most.
    in_flight: usize,
    waiting: VecDeque<Waiting<P, G>>,
    running: Vec<Running<P, G>>,
}

struct Waiting<P: Proposer, G: Guide> {
    id: usize,
    settings: Settings,
    stream: u64,
    proposer: P::Prompt,
    guide: G::Prompt,
    pages: Pages,
}

struct Running<P: Proposer, G: Guide> {
    id: usize,
    search: Search<P::State, G::State>,
    pages: Pages,
}

/// Pages in each pool of the proposer, then of the guide.
type Pages = Vec<usize>;

/// A search that is over.
pub struct Finished {
    /// The id it was submitted with.
    pub id: usize,
    /// The answer, or why there is none.
    pub result: Result<Outcome>,
}

impl<P: Proposer, G: Guide> Scheduler<P, G> {
    /// A scheduler that runs at most `in_flight` searches at once.
    pub fn new(proposer: P, guide: G, in_flight: usize) -> Self {
        assert!(in_flight > 0, "nothing could ever run");
        Self { proposer, guide, in_flight, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// The base model.
    pub fn proposer(&self) -> &P {
        &self.proposer
    }

    /// The judge.
    pub fn guide(&self) -> &G {
        &self.guide
    }

    /// Searches submitted but not finished.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Queues a search; an error if it could never run.
    pub fn submit(&mut self, id: usize, prompt: &Prompt, settings: Settings) -> Result<()> {
        settings.validate()?;
        let life = settings.lifetime();
        let proposer = self.proposer.prepare(prompt, &life)?;
        let guide = self.guide.prepare(prompt, &life)?;
        let mut pages = self.proposer.pages_needed(&proposer, &life);
        pages.extend(self.guide.pages_needed(&guide, &life));
        for (&needed, capacity) in pages.iter().zip(self.capacity()) {
            if needed > capacity {
                return Err(Error::TooLargeForCache { needed, capacity });
            }
        }
        let stream = stream(prompt);
        self.waiting.push_back(Waiting { id, settings, stream, proposer, guide, pages });
        Ok(())
    }

    /// Runs everything up to the nearest end of a chunk; returns the searches that ended there.
    ///
    /// An error here is the device's and concerns all running searches.
    pub fn tick(&mut self) -> Result<Vec<Finished>> {
        self.admit()?;
        self.extend()?;
        self.score()
    }

    fn capacity(&self) -> Pages {
        let mut pages = self.proposer.page_capacity();
        pages.extend(self.guide.page_capacity());
        pages
    }

    /// Starts waiting searches, in order, as long as their pages are free.
    fn admit(&mut self) -> Result<()> {
        let mut free = self.capacity();
        for running in &self.running {
            for (free, used) in free.iter_mut().zip(&running.pages) {
                *free -= used;
            }
        }
        let mut admitted = Vec::new();
        while let Some(next) = self.waiting.front()
            && self.running.len() + admitted.len() < self.in_flight
            && next.pages.iter().zip(&free).all(|(needed, free)| needed <= free)
        {
            for (free, needed) in free.iter_mut().zip(&next.pages) {
                *free -= needed;
            }
            admitted.extend(self.waiting.pop_front());
        }
        if admitted.is_empty() {
            return Ok(());
        }
        let prompts: Vec<_> = admitted.iter().map(|waiting| &waiting.proposer).collect();
        let proposer = self.proposer.open(&prompts)?;
        let prompts: Vec<_> = admitted.iter().map(|waiting| &waiting.guide).collect();
        let guide = self.guide.open(&prompts)?;
        for ((waiting, proposer), guide) in admitted.into_iter().zip(proposer).zip(guide) {
            let Waiting { id, settings, stream, pages, .. } = waiting;
            let mut search = Search::new(settings, stream, proposer, guide);
            search.expand();
            self.running.push(Running { id, search, pages });
        }
        Ok(())
    }

    /// Continues all live candidates up to the nearest end of a chunk.
    fn extend(&mut self) -> Result<()> {
        let Some(steps) = self.running.iter().map(|r| r.search.remaining()).min() else {
            return Ok(());
        };
        let mut drafts: Vec<_> =
            self.running.iter_mut().flat_map(|running| running.search.drafts(steps)).collect();
        self.proposer.extend(&mut drafts)
    }

    /// Scores the candidates of all searches at the end of a chunk and selects from them.
    fn score(&mut self) -> Result<Vec<Finished>> {
        let mut settled: Vec<_> =
            self.running.iter_mut().filter(|r| r.search.remaining() == 0).collect();
        let mut items = Vec::new();
        let mut counts = Vec::new();
        for running in &mut settled {
            running.search.settle();
            let before = items.len();
            items.extend(running.search.scorings());
            counts.push(items.len() - before);
        }
        let mut scores = self.guide.score(&mut items)?.into_iter();
        drop(items);
        let mut finished = Vec::new();
        for (running, count) in settled.into_iter().zip(counts) {
            let selected = running.search.select(scores.by_ref().take(count).collect::<Vec<_>>());
            let result = match (selected, running.search.outcome()) {
                (Err(error), _) => Err(error),
                (Ok(()), Some(outcome)) => Ok(outcome),
                (Ok(()), None) => {
                    running.search.expand();
                    continue;
                }
            };
            finished.push(Finished { id: running.id, result });
        }
        self.running.retain(|running| finished.iter().all(|done| done.id != running.id));
        Ok(finished)
    }
}

/// Names a search's random numbers by its prompt (FNV-1a), so that the answer does not depend on
/// where in a file the prompt stands or what else is running.
fn stream(prompt: &Prompt) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |text: &str| {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        for &byte in (text.len() as u64).to_le_bytes().iter().chain(text.as_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match prompt {
        Prompt::Text(text) => add(text),
        Prompt::Chat(messages) => {
            for message in messages {
                add(&message.role);
                add(&message.content);
            }
        }
    }
    hash
}
