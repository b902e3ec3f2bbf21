//! The one thread that owns the scheduler.
//!
//! A request's jobs come together: all are taken or none. What happens to them comes back
//! over a channel; who drops the receiving end has cancelled them, and their pages are free before
//! the next tick.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::desk::Inbox;
use super::gate::Gate;
use super::log::say;
use super::metrics::Metrics;
use super::refusal::Refusal;
use crate::error::Error;
use crate::guide::Guide;
use crate::proposer::Proposer;
use crate::scheduler::{Finished, Progress, Ready, Scheduler};
use crate::search::{Chunk, Outcome, Settings, TracedCandidate};
use crate::text::{Message, Prompt, complete_utf8};

/// Requests that are taken between two ticks at most.
const PER_TICK: usize = 64;

/// One thing to do.
pub enum Job {
    /// Searches of one prompt.
    Search {
        /// What to answer.
        prompt: Prompt,
        /// How.
        settings: Settings,
        /// The seed of each search.
        seeds: Vec<u64>,
        /// Whether to report text and steps as they come.
        watch: bool,
        /// Whether to keep their steps.
        trace: bool,
    },
    /// A response that somebody else wrote, to be scored.
    Given {
        /// What it answers.
        prompt: Prompt,
        /// The response.
        response: String,
        /// Whether its end counts.
        ended: bool,
    },
}

impl Job {
    /// Bytes of all its texts.
    pub fn bytes(&self) -> usize {
        let message = |message: &Message| message.role.len() + message.content.len();
        let prompt = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(messages) => messages.iter().map(message).sum(),
        };
        match self {
            Job::Search { prompt: asked, .. } => prompt(asked),
            Job::Given { prompt: asked, response, .. } => prompt(asked) + response.len(),
        }
    }
}

/// What happens to a job.
pub enum Event {
    /// A watched search has come further.
    Step {
        /// Its new steps.
        chunks: Vec<Chunk>,
        /// What is new in the text that its answer will begin with; all such texts together are
        /// the answer's.
        text: String,
    },
    /// It is done.
    Done(Box<Outcome>),
    /// It failed.
    Failed(Arc<Error>),
    /// It was given up, since what it has written already is not read.
    Unread,
}

/// Bytes of a request's steps that may wait to be read. One that reads no faster is given up.
const BACKLOG: usize = 8 << 20;

impl Event {
    /// Bytes that it holds until it is read. The last one of a search counts nothing.
    fn bytes(&self) -> usize {
        let Event::Step { chunks, text } = self else { return 0 };
        let candidates = chunks.iter().flat_map(|chunk| &chunk.candidates);
        let candidate =
            |candidate: &TracedCandidate| size_of::<TracedCandidate>() + candidate.text.len();
        size_of::<Self>() + text.len() + candidates.map(candidate).sum::<usize>()
    }
}

/// A job's place in the request, and what happens to it, as it comes. Drop this to cancel them all.
pub struct Events {
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    waiting: Arc<AtomicUsize>,
}

impl Events {
    /// The next one; none if the engine is gone.
    pub async fn recv(&mut self) -> Option<(usize, Event)> {
        let (index, event) = self.events.recv().await?;
        self.waiting.fetch_sub(event.bytes(), Ordering::Relaxed);
        Some((index, event))
    }
}

/// The jobs of one request, taken.
pub struct Accepted {
    /// Tokens of each job's prompt, where the base model has read it.
    pub prompt_tokens: Vec<Option<usize>>,
    /// What happens to them.
    pub events: Events,
}

/// Why a request's jobs were not taken.
pub enum Rejected {
    /// This one could never run.
    Impossible(usize, Error),
    /// Even an empty queue could not hold them: W·K of all of them, and what the queue holds.
    TooMany(usize, usize),
    /// Too many wait already; seconds after which it may be different.
    QueueFull(u64),
    /// The device has failed for good.
    Broken(Arc<Error>),
}

/// A request's jobs, whose texts have been read, and whether each is watched.
pub struct Submission<P: Proposer, G: Guide> {
    /// The jobs.
    pub jobs: Vec<(Ready<P, G>, bool)>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Accepted, Rejected>>,
}

/// A job that waits or runs.
struct Active {
    events: mpsc::UnboundedSender<(usize, Event)>,
    /// Bytes of its request's events that wait to be read.
    waiting: Arc<AtomicUsize>,
    /// Its place in its request.
    index: usize,
    watch: bool,
    candidates: usize,
    /// Steps that were reported.
    chunks: usize,
    /// Bytes of text that were reported.
    text: usize,
}

impl Active {
    /// Reports what is new, if anybody wants to know. `agreed` is text from the answer's beginning.
    fn report(&mut self, chunks: &[Chunk], agreed: &str) {
        let (chunks, text) = (&chunks[self.chunks..], &agreed[self.text..]);
        if !self.watch || chunks.is_empty() && text.is_empty() {
            return;
        }
        self.chunks += chunks.len();
        self.text += text.len();
        self.send(Event::Step { chunks: chunks.to_vec(), text: text.to_owned() });
    }

    /// Who does not listen any more is cancelled before the next tick.
    fn send(&self, event: Event) {
        self.waiting.fetch_add(event.bytes(), Ordering::Relaxed);
        let _ = self.events.send((self.index, event));
    }

    /// Whether the client has left too much of the answer unread.
    fn is_unread(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > BACKLOG
    }
}

/// The scheduler, and who waits for what it does.
pub struct Engine<P: Proposer, G: Guide> {
    scheduler: Scheduler<P, G>,
    active: BTreeMap<usize, Active>,
    next_id: usize,
    /// W·K that may wait together.
    queue: usize,
    metrics: Arc<Metrics>,
    gate: Arc<Gate>,
    /// Why nothing can be run any more.
    broken: Option<Arc<Error>>,
    /// Time spent in ticks, and candidates of the searches that were finished in it.
    busy: Duration,
    finished_candidates: usize,
}

impl<P: Proposer, G: Guide> Engine<P, G> {
    /// An engine with nothing to do yet. `queue` is the W·K that may wait together; `gate` is told
    /// when the device fails for good.
    pub fn new(
        scheduler: Scheduler<P, G>,
        queue: usize,
        metrics: Arc<Metrics>,
        gate: Arc<Gate>,
    ) -> Self {
        let engine = Self {
            scheduler,
            active: BTreeMap::new(),
            next_id: 0,
            queue,
            metrics,
            gate,
            broken: None,
            busy: Duration::ZERO,
            finished_candidates: 0,
        };
        engine.show();
        engine
    }

    /// Runs what comes in until nothing more can.
    ///
    /// # Errors
    /// The device's, if it has failed for good; all who came in were told.
    pub fn run(mut self, inbox: Inbox) -> Result<(), Arc<Error>>
    where
        P: 'static,
        G: 'static,
    {
        let inbox: Receiver<Submission<P, G>> =
            inbox.read(&self.scheduler.reader(), &self.gate.watch);
        let watched = self.gate.watch.worker();
        loop {
            if self.active.is_empty() {
                match inbox.recv() {
                    Ok(submission) => self.take(submission),
                    Err(_) => return self.broken.map_or(Ok(()), Err),
                }
            }
            inbox.try_iter().take(PER_TICK).for_each(|submission| self.take(submission));
            self.drop_cancelled();
            self.show();
            if !self.active.is_empty() {
                watched.begins();
                self.tick();
                self.show();
                watched.rests();
            }
        }
    }

    fn take(&mut self, Submission { jobs, reply }: Submission<P, G>) {
        // Who has gone already needs no answer; who goes now is cancelled before the next tick.
        if !reply.is_closed() {
            let _ = reply.send(self.submit(jobs));
        }
    }

    /// Queues all jobs of a request or none.
    fn submit(&mut self, jobs: Vec<(Ready<P, G>, bool)>) -> Result<Accepted, Rejected> {
        if let Some(error) = &self.broken {
            return Err(Rejected::Broken(error.clone()));
        }
        let candidates = jobs.iter().map(|(ready, _)| ready.candidates());
        let candidates = candidates.fold(0, usize::saturating_add);
        if candidates > self.queue {
            return Err(Rejected::TooMany(candidates, self.queue));
        }
        let waiting = self.scheduler.waiting_candidates();
        if candidates > self.queue - waiting.min(self.queue) {
            return Err(Rejected::QueueFull(self.seconds_until_empty(waiting)));
        }
        let (sender, events) = mpsc::unbounded_channel();
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let first = self.next_id;
        let mut prompt_tokens = Vec::with_capacity(jobs.len());
        for (index, (ready, watch)) in jobs.into_iter().enumerate() {
            let id = self.next_id;
            self.next_id += 1;
            let candidates = ready.candidates();
            match self.scheduler.submit_ready(id, ready) {
                Ok(tokens) => prompt_tokens.push(tokens),
                Err(error) => {
                    (first..id).for_each(|id| {
                        self.scheduler.cancel(id);
                        self.active.remove(&id);
                    });
                    return Err(Rejected::Impossible(index, error));
                }
            }
            let (events, waiting) = (sender.clone(), waiting_bytes.clone());
            let active = Active { events, waiting, index, watch, candidates, chunks: 0, text: 0 };
            self.active.insert(id, active);
        }
        self.metrics.prompts(&prompt_tokens);
        let events = Events { events, waiting: waiting_bytes };
        Ok(Accepted { prompt_tokens, events })
    }

    /// A guess, from how fast candidates were finished so far.
    fn seconds_until_empty(&self, waiting: usize) -> u64 {
        let each = self.busy.as_secs_f64() / self.finished_candidates.max(1) as f64;
        (waiting as f64 * each).ceil().clamp(1.0, 60.0) as u64
    }

    fn drop_cancelled(&mut self) {
        let gone = |active: &Active| active.events.is_closed() || active.is_unread();
        let cancelled: Vec<usize> =
            self.active.iter().filter(|(_, active)| gone(active)).map(|(&id, _)| id).collect();
        for id in cancelled {
            self.scheduler.cancel(id);
            if let Some(active) = self.active.remove(&id) {
                active.send(Event::Unread);
            }
            self.metrics.cancelled();
        }
    }

    fn tick(&mut self) {
        let started = Instant::now();
        let before = self.scheduler.spent();
        let finished = match self.scheduler.tick() {
            Ok(finished) => finished,
            Err(error) => return self.fail_all(error),
        };
        self.busy += started.elapsed();
        self.metrics.phases(before, self.scheduler.spent());
        for Progress { id, chunks, agreed } in self.scheduler.progress() {
            if let Some(active) = self.active.get_mut(&id) {
                // Bytes of a character that is not complete yet are held back.
                active.report(chunks, &complete_utf8(agreed).0);
            }
        }
        for Finished { id, result } in finished {
            let Some(mut active) = self.active.remove(&id) else { continue };
            self.finished_candidates += active.candidates;
            self.metrics.finished(&result);
            match result {
                Ok(outcome) => {
                    active.report(&outcome.trace, &outcome.response.to_text());
                    active.send(Event::Done(Box::new(outcome)));
                }
                Err(error) => {
                    if matches!(error, Error::Remote { .. }) {
                        say(&error);
                    }
                    active.send(Event::Failed(Arc::new(error)));
                }
            }
        }
    }

    /// The device failed: nobody who runs or waits can be answered. If it has failed for good, who
    /// comes later cannot either.
    fn fail_all(&mut self, error: Error) {
        say(&error);
        let error = Arc::new(error);
        if error.is_final() {
            self.gate.fail(Refusal::from_engine(&error, ""));
            self.broken = Some(error.clone());
        }
        for (id, active) in std::mem::take(&mut self.active) {
            self.scheduler.cancel(id);
            active.send(Event::Failed(error.clone()));
        }
    }

    fn show(&self) {
        let waiting = self.scheduler.waiting();
        let running = self.scheduler.pending() - waiting;
        self.metrics.queue(waiting, self.scheduler.waiting_candidates(), running);
        let of_proposer = self.scheduler.proposer().page_capacity().len();
        self.metrics.pools(&self.scheduler.pools(), of_proposer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a client that does not read costs a bounded amount of memory; one that reads, however late, is not
    /// given up.
    #[test]
    fn what_waits_to_be_read_is_counted() {
        let (sender, events) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut active = Active {
            events: sender,
            waiting: waiting.clone(),
            index: 0,
            watch: true,
            candidates: 1,
            chunks: 0,
            text: 0,
        };
        let mut events = Events { events, waiting };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut text = String::new();
        for _ in 0..3 {
            for _ in 0..8 {
                assert!(!active.is_unread());
                text += &"x".repeat(1 << 20);
                active.report(&[], &text);
            }
            assert!(active.is_unread(), "8 MiB and their events");
            for _ in 0..8 {
                assert!(matches!(runtime.block_on(events.recv()), Some((0, Event::Step { .. }))));
            }
        }
        assert_eq!(events.waiting.load(Ordering::Relaxed), 0);
    }
}
