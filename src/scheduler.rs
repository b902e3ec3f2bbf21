//! Floor 6: many searches share each step of the models.
//!
//! A tick continues all candidates of all running searches up to the nearest end of a chunk;
//! those that have reached it are scored together, selected from, and either done or forked
//! again. New searches join between ticks, and cancelled ones leave. A search is admitted when
//! all pages that it may ever need are free, so nothing is preempted or stuck halfway; the first
//! one waiting is overtaken by small ones at most, within a bound (share.rs). What a search answers does not depend on who else is running.
//!
//! A response that somebody else wrote can be scored too: a search with nothing to propose.

mod ready;
mod share;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::guide::{Guide, Score, Scoring};
use crate::proposer::{Finish, Prompt, Proposer, Response};
use crate::search::{Chunk, Outcome, Search, Settings};
use ready::Task;
pub use ready::{Reader, Ready};
use share::{ALONE, CROWD, Room};

/// Runs searches on one proposer and one guide.
pub struct Scheduler<P: Proposer, G: Guide> {
    proposer: P,
    guide: G,
    /// Searches that run at the same time at most.
    in_flight: usize,
    /// Tokens that a tick adds to a candidate at most.
    stride: usize,
    /// Whether small searches may overtake large ones.
    small_first: bool,
    /// Ticks of small searches alone since the last one of all.
    alone: usize,
    waiting: VecDeque<Waiting<P, G>>,
    running: Vec<Running<P, G>>,
    spent: Spent,
}

struct Waiting<P: Proposer, G: Guide> {
    id: usize,
    pages: Pages,
    ready: Ready<P, G>,
}

struct Running<P: Proposer, G: Guide> {
    id: usize,
    pages: Pages,
    small: bool,
    overtook: bool,
    work: Work<P, G>,
}

enum Work<P: Proposer, G: Guide> {
    Search(Search<P::State, G::State>),
    Given { guide: G::State, response: Response },
}

/// Pages in each pool of the proposer, then of the guide.
type Pages = Vec<usize>;

/// A search that is over.
pub struct Finished {
    /// The id it was submitted with.
    pub id: usize,
    /// The answer, or why there is none. A given response's outcome is itself, with its score.
    pub result: Result<Outcome>,
}

/// How far a running search has come.
pub struct Progress<'a> {
    /// The id it was submitted with.
    pub id: usize,
    /// Its steps so far.
    pub chunks: &'a [Chunk],
    /// The bytes that its answer will begin with.
    pub agreed: &'a [u8],
}

/// One pool of cache pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// All pages.
    pub capacity: usize,
    /// Pages that running searches may come to hold.
    pub reserved: usize,
    /// Pages that nobody holds now.
    pub free: usize,
}

/// Time spent in each part of a tick, since the scheduler was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Running prompts.
    pub prefill: Duration,
    /// Continuing candidates.
    pub expand: Duration,
    /// Scoring them.
    pub score: Duration,
    /// Settling, selecting and dropping them.
    pub select: Duration,
    /// Forking the beams.
    pub fork: Duration,
}

impl<P: Proposer, G: Guide> Scheduler<P, G> {
    /// A scheduler that runs at most `in_flight` searches at once.
    pub fn new(proposer: P, guide: G, in_flight: usize) -> Self {
        assert!(in_flight > 0, "nothing could ever run");
        Self {
            proposer,
            guide,
            in_flight,
            stride: usize::MAX,
            small_first: false,
            alone: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            spent: Spent::default(),
        }
    }

    /// The same with ticks that add at most `stride` tokens to a candidate, so that searches with
    /// long chunks are joined, watched and cancelled in between. The answers are the same.
    pub fn with_stride(self, stride: usize) -> Self {
        assert!(stride > 0, "nothing would ever advance");
        Self { stride, ..self }
    }

    /// The same with room kept for small searches, which overtake large ones there. The answers are the same.
    pub fn with_small_first(self) -> Self {
        Self { small_first: true, ..self }
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

    /// Searches submitted but not running yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The sum of W·K over the searches that wait.
    pub fn waiting_candidates(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.ready.candidates()).sum()
    }

    /// How far each running search has come. Given responses are not among them.
    pub fn progress(&self) -> impl Iterator<Item = Progress<'_>> {
        self.running.iter().filter_map(|running| match &running.work {
            Work::Search(search) => {
                let (chunks, agreed) = (search.trace(), search.agreed());
                Some(Progress { id: running.id, chunks, agreed })
            }
            Work::Given { .. } => None,
        })
    }

    /// The pools of the proposer, then of the guide.
    pub fn pools(&self) -> Vec<PoolUse> {
        let free = self.proposer.pages_free().into_iter().chain(self.guide.pages_free());
        let reserved = self.reserved();
        let pools = self.capacity().into_iter().zip(reserved).zip(free);
        pools.map(|((capacity, reserved), free)| PoolUse { capacity, reserved, free }).collect()
    }

    /// Time spent so far.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Queues a search; an error if it could never run. Returns the prompt's length in the base
    /// model's tokens, where that is known.
    pub fn submit(
        &mut self,
        id: usize,
        prompt: &Prompt,
        settings: Settings,
    ) -> Result<Option<usize>> {
        let ready = self.reader().search(prompt, settings)?;
        self.submit_ready(id, ready)
    }

    /// Queues the scoring of a response that is given as text; `ended` says whether the end of the
    /// text is the end of the response. An error if the prompt cannot be run.
    pub fn submit_given(
        &mut self,
        id: usize,
        prompt: &Prompt,
        text: String,
        ended: bool,
    ) -> Result<()> {
        let ready = self.reader().given(prompt, text, ended)?;
        self.submit_ready(id, ready).map(|_| ())
    }

    /// What reads for this scheduler.
    pub fn reader(&self) -> Reader<P, G> {
        Reader { proposer: self.proposer.reader(), guide: self.guide.reader() }
    }

    /// Queues what this scheduler's reader has read, which takes next to no time; an error if there are not
    /// enough pages. Returns the length of a search's prompt, where that is known.
    pub fn submit_ready(&mut self, id: usize, ready: Ready<P, G>) -> Result<Option<usize>> {
        let Ready { life, guide, task } = &ready;
        let needed = self.guide.pages_needed(guide, life);
        let (pages, prompt_tokens) = match task {
            Task::Search { proposer, .. } => {
                let mut pages = self.proposer.pages_needed(proposer, life);
                pages.extend(needed);
                for (&needed, capacity) in pages.iter().zip(self.capacity()) {
                    if needed > capacity {
                        return Err(Error::TooLargeForCache { needed, capacity });
                    }
                }
                (pages, self.proposer.prompt_tokens(proposer))
            }
            Task::Given(_) => {
                // Should the bound on its tokens not fit, the rest of the pool is enough for any
                // response that the guide can read.
                let none = vec![0; self.proposer.page_capacity().len()];
                let pages = none.into_iter().chain(needed).zip(self.capacity());
                (pages.map(|(needed, capacity)| needed.min(capacity)).collect(), None)
            }
        };
        self.waiting.push_back(Waiting { id, pages, ready });
        Ok(prompt_tokens)
    }

    /// Drops a search and frees its pages; false if there is none of this id.
    pub fn cancel(&mut self, id: usize) -> bool {
        let before = self.pending();
        self.waiting.retain(|waiting| waiting.id != id);
        self.running.retain(|running| running.id != id);
        self.pending() < before
    }

    /// Runs everything up to the nearest end of a chunk (or the stride, if that is nearer);
    /// returns the searches that ended there.
    ///
    /// An error here is the device's and concerns all running searches.
    pub fn tick(&mut self) -> Result<Vec<Finished>> {
        let started = Instant::now();
        self.admit()?;
        let admitted = Instant::now();
        let alone = self.are_small_ones_alone();
        self.extend(alone)?;
        self.spent.prefill += admitted - started;
        self.spent.expand += admitted.elapsed();
        let mut finished = self.advance();
        finished.extend(self.score(alone)?);
        Ok(finished)
    }

    fn capacity(&self) -> Pages {
        let mut pages = self.proposer.page_capacity();
        pages.extend(self.guide.page_capacity());
        pages
    }

    fn reserved(&self) -> Pages {
        let mut reserved = vec![0; self.capacity().len()];
        for running in &self.running {
            for (reserved, pages) in reserved.iter_mut().zip(&running.pages) {
                *reserved += pages;
            }
        }
        reserved
    }

    /// Takes those that may start from those that wait: in order, as long as there is room, and small ones from further
    /// behind into room of their own. Each with whether it has overtaken others.
    fn next(&mut self) -> Vec<(Waiting<P, G>, bool)> {
        let capacity = self.capacity();
        let mut room = Room::in_order(self.in_flight, &capacity, self.small_first);
        let mut small = Room::to_overtake(self.in_flight, &capacity);
        for running in &self.running {
            let room = if running.overtook { &mut small } else { &mut room };
            room.give(&running.pages);
        }
        let mut next = Vec::new();
        while self.waiting.front().is_some_and(|first| room.take(&first.pages)) {
            next.extend(self.waiting.pop_front().map(|first| (first, false)));
        }
        let Some(first) = self.waiting.front() else { return next };
        let most = Room::in_order(self.in_flight, &capacity, self.small_first).pages;
        if first.pages.iter().zip(&most).any(|(needed, most)| needed > most) {
            // It needs what is kept for small ones too: none overtakes it, and it starts when all are done.
            if self.running.is_empty() && next.is_empty() {
                next.extend(self.waiting.pop_front().map(|first| (first, false)));
            }
            return next;
        }
        if self.small_first {
            let mut index = 0;
            while let Some(waiting) = self.waiting.get(index) {
                if waiting.ready.is_small() && small.take(&waiting.pages) {
                    next.extend(self.waiting.remove(index).map(|waiting| (waiting, true)));
                } else {
                    index += 1;
                }
            }
        }
        next
    }

    /// Starts waiting searches.
    fn admit(&mut self) -> Result<()> {
        let admitted = self.next();
        if admitted.is_empty() {
            return Ok(());
        }
        let prompts: Vec<_> = admitted
            .iter()
            .filter_map(|(waiting, _)| match &waiting.ready.task {
                Task::Search { proposer, .. } => Some(&**proposer),
                Task::Given(_) => None,
            })
            .collect();
        let mut proposer = self.proposer.open(&prompts)?.into_iter();
        let prompts: Vec<_> = admitted.iter().map(|(waiting, _)| &*waiting.ready.guide).collect();
        let guide = self.guide.open(&prompts)?;
        for ((Waiting { id, pages, ready }, overtook), guide) in admitted.into_iter().zip(guide) {
            let small = ready.is_small();
            let work = match ready.task {
                Task::Given(response) => Work::Given { guide, response },
                Task::Search { settings, stream, traced, .. } => {
                    let proposer = proposer.next().expect("a state for each prompt");
                    let search = Search::new(settings, stream, proposer, guide);
                    let mut search = if traced { search } else { search.untraced() };
                    search.expand();
                    Work::Search(search)
                }
            };
            self.running.push(Running { id, pages, small, overtook, work });
        }
        Ok(())
    }

    /// Whether the next tick is for small searches alone.
    fn are_small_ones_alone(&mut self) -> bool {
        let large = self.running.iter().filter(|running| !running.small);
        let crowd: usize = large.filter_map(Running::search).map(Search::candidates).sum();
        let alone = self.small_first
            && self.alone < ALONE
            && crowd > CROWD
            && self.running.iter().any(|running| running.small);
        self.alone = if alone { self.alone + 1 } else { 0 };
        alone
    }

    /// Continues all live candidates (or those of small searches `alone`) up to the nearest end of a chunk.
    fn extend(&mut self, alone: bool) -> Result<()> {
        let takes_part = |running: &&Running<P, G>| running.small || !alone;
        let searches = || self.running.iter().filter(takes_part).filter_map(Running::search);
        let Some(steps) = searches().map(Search::remaining).min() else {
            return Ok(());
        };
        let (steps, whole) = (steps.min(self.stride), self.proposer.whole_chunks());
        let mut drafts: Vec<_> = self
            .running
            .iter_mut()
            .filter(|running| running.small || !alone)
            .filter_map(Running::search_mut)
            .flat_map(|search| search.drafts(if whole { search.remaining() } else { steps }))
            .collect();
        self.proposer.extend(&mut drafts)
    }

    /// Moves searches on by what the proposer has written, and drops those that it cannot continue.
    fn advance(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        self.running.retain_mut(|running| {
            let advanced = running.search_mut().map_or(Ok(()), Search::advance);
            let id = running.id;
            advanced.map_err(|error| finished.push(Finished { id, result: Err(error) })).is_ok()
        });
        finished
    }

    /// Scores the candidates of all searches at the end of a chunk and selects from them.
    fn score(&mut self, alone: bool) -> Result<Vec<Finished>> {
        let started = Instant::now();
        let is_due =
            |running: &&mut Running<P, G>| (running.small || !alone) && running.is_settled();
        let mut settled: Vec<_> = self.running.iter_mut().filter(is_due).collect();
        if settled.is_empty() {
            return Ok(Vec::new());
        }
        let mut items = Vec::new();
        let mut counts = Vec::new();
        for running in &mut settled {
            let before = items.len();
            match &mut running.work {
                Work::Search(search) => {
                    search.settle();
                    items.extend(search.scorings());
                }
                Work::Given { guide, response } => items.push(Scoring { state: guide, response }),
            }
            counts.push(items.len() - before);
        }
        let scoring = Instant::now();
        let mut scores = self.guide.score(&mut items)?.into_iter();
        let scored = Instant::now();
        drop(items);
        let mut finished = Vec::new();
        let mut live = Vec::new();
        for (running, count) in settled.into_iter().zip(counts) {
            let id = running.id;
            match running.select(scores.by_ref().take(count).collect()) {
                Some(result) => finished.push(Finished { id, result }),
                None => live.extend(running.search_mut()),
            }
        }
        let selected = Instant::now();
        live.into_iter().for_each(Search::expand);
        let forked = Instant::now();
        self.running.retain(|running| finished.iter().all(|done| done.id != running.id));
        self.spent.score += scored - scoring;
        self.spent.select += (scoring - started) + (selected - scored) + forked.elapsed();
        self.spent.fork += forked - selected;
        Ok(finished)
    }
}

impl<P: Proposer, G: Guide> Running<P, G> {
    fn search(&self) -> Option<&Search<P::State, G::State>> {
        match &self.work {
            Work::Search(search) => Some(search),
            Work::Given { .. } => None,
        }
    }

    fn search_mut(&mut self) -> Option<&mut Search<P::State, G::State>> {
        match &mut self.work {
            Work::Search(search) => Some(search),
            Work::Given { .. } => None,
        }
    }

    /// Whether the guide must look at it now.
    fn is_settled(&self) -> bool {
        self.search().is_none_or(|search| search.remaining() == 0)
    }

    /// Keeps the best candidates, given their scores; a result if that was the end.
    fn select(&mut self, mut scores: Vec<Result<Score>>) -> Option<Result<Outcome>> {
        match &mut self.work {
            Work::Search(search) => match (search.select(scores), search.outcome()) {
                (Err(error), _) => Some(Err(error)),
                (Ok(()), Some(outcome)) => Some(Ok(outcome)),
                (Ok(()), None) => None,
            },
            Work::Given { response, .. } => Some(scores.remove(0).map(|score| Outcome {
                finish: response.finish.unwrap_or(Finish::Length),
                response: std::mem::take(response),
                score,
                trace: Vec::new(),
            })),
        }
    }
}
