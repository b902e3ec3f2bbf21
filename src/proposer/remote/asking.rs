//! Requests in the background.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::RemoteProposer;
use super::client::{Ask, Choice, Client};
use crate::error::{Error, Result};
use crate::philox::Draw;
use crate::proposer::Sampling;

/// What one search waits for: a choice for each of its candidates, all or none.
#[derive(Default)]
pub struct Chunk {
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    choices: Vec<Option<Choice>>,
    failed: bool,
    /// Told once.
    failure: Option<Error>,
}

impl Chunk {
    /// Makes a place for another candidate.
    pub fn add(&self) -> usize {
        let mut answers = lock(&self.answers);
        answers.choices.push(None);
        answers.choices.len() - 1
    }

    /// A candidate's choice, when the chunk is over. If that is because it has failed, the first
    /// who asks is told why.
    pub fn take(&self, place: usize) -> Result<Choice, Option<Error>> {
        let mut answers = lock(&self.answers);
        if answers.failed {
            return Err(answers.failure.take());
        }
        answers.choices[place].take().ok_or(None)
    }

    /// Gives it all up.
    pub fn fail(&self, error: Error) {
        let mut answers = lock(&self.answers);
        answers.failed = true;
        answers.failure.get_or_insert(error);
    }

    fn put(&self, drafts: &[Numbered], choices: Vec<Choice>) {
        let mut answers = lock(&self.answers);
        for (draft, choice) in drafts.iter().zip(choices) {
            answers.choices[draft.place] = Some(choice);
        }
    }

    fn failed(&self) -> bool {
        lock(&self.answers).failed
    }

    /// Whether there is nothing more to wait for: all choices have come, or none will.
    pub fn is_over(&self) -> bool {
        let answers = lock(&self.answers);
        answers.failed || !answers.choices.contains(&None)
    }
}

/// A candidate's place in its chunk, and its random numbers.
#[derive(Clone, Copy)]
pub struct Numbered {
    pub place: usize,
    pub draw: Draw,
}

/// A text that is to be continued in one way.
pub struct Text {
    /// As the server gets it.
    pub prompt: serde_json::Value,
    pub steps: usize,
    pub sampling: Sampling,
}

/// Candidates that continue the same text: a request, or several where the server gives fewer.
#[derive(Clone)]
pub struct Job {
    pub text: Arc<Text>,
    /// Gone when nobody wants the answer any more.
    pub chunk: Weak<Chunk>,
    pub drafts: Vec<Numbered>,
}

impl Job {
    fn is_wanted(&self) -> bool {
        self.chunk.upgrade().is_some_and(|chunk| !chunk.failed())
    }

    /// The same for some of the candidates at a time.
    fn parts(&self, drafts: &[Numbered], most: usize) -> Vec<Job> {
        let part = |drafts: &[Numbered]| Job { drafts: drafts.to_vec(), ..self.clone() };
        drafts.chunks(most).map(part).collect()
    }
}

/// Asks a server with several threads.
pub struct Asking {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    /// Choices that one request asks for at most: fewer once the server has given fewer.
    choices: AtomicUsize,
    queue: Mutex<Queue>,
    /// There are jobs, or there will be none.
    work: Condvar,
    /// A job is over.
    answered: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl Asking {
    pub fn new(client: Client) -> Self {
        let choices = AtomicUsize::new(client.endpoint().choices.max(1));
        let (queue, work, answered) = Default::default();
        Self { shared: Arc::new(Shared { client, choices, queue, work, answered }) }
    }

    /// Has these jobs done in the background.
    ///
    /// # Errors
    /// [`Error::Flag`] when there is no thread for them.
    pub fn ask(&self, jobs: impl IntoIterator<Item = Job>) -> Result<()> {
        let most = self.shared.choices.load(Ordering::Relaxed);
        self.shared.submit(jobs.into_iter().flat_map(|job| job.parts(&job.drafts, most)))
    }

    /// Waits until one of these chunks is over, but not longer than that.
    pub fn wait<'a>(&self, chunks: impl Iterator<Item = &'a Chunk> + Clone, patience: Duration) {
        let end = Instant::now() + patience;
        let mut queue = lock(&self.shared.queue);
        while chunks.clone().next().is_some() && !chunks.clone().any(Chunk::is_over) {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            let waited = self.shared.answered.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, jobs: impl IntoIterator<Item = Job>) -> Result<()> {
        let mut queue = lock(&self.queue);
        queue.jobs.extend(jobs);
        let wanted = queue.jobs.len().saturating_sub(queue.idle);
        let most = self.client.endpoint().requests - queue.threads;
        for _ in 0..wanted.min(most) {
            let shared = self.clone();
            let thread = std::thread::Builder::new().name("request".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    let reason = format!("cannot be had, not even one: {error}");
                    return Err(Error::flag("--base-requests", reason));
                }
                // Those that there are will do.
                Err(_) => break,
            }
        }
        self.work.notify_all();
        Ok(())
    }

    /// What each thread does.
    fn work(self: Arc<Self>) {
        while let Some(job) = self.next() {
            if job.is_wanted() {
                let result = self.run(&job);
                let rest = match (result, job.chunk.upgrade()) {
                    (_, None) => Vec::new(),
                    (Ok((choices, rest)), Some(chunk)) => {
                        chunk.put(&job.drafts, choices);
                        rest
                    }
                    (Err(error), Some(chunk)) => {
                        chunk.fail(error);
                        Vec::new()
                    }
                };
                // This thread is there for them, if no other is.
                let _ = self.submit(rest);
            }
            let _queue = lock(&self.queue);
            self.answered.notify_all();
        }
    }

    /// The next job; none when there will be no more.
    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// Does a job. Returns what came, and what must still be asked for.
    fn run(&self, job: &Job) -> Result<(Vec<Choice>, Vec<Job>)> {
        let Text { prompt, steps, sampling } = &*job.text;
        let Sampling { temperature, top_p, top_k } = *sampling;
        // Greedy continuations of one text are all the same.
        let greedy = temperature == 0.0;
        let ask = Ask {
            model: &self.client.endpoint().model,
            prompt,
            n: if greedy { 1 } else { job.drafts.len() },
            max_tokens: *steps,
            temperature,
            top_p,
            top_k: (top_k > 0).then_some(top_k),
            // Servers want a number that is not negative.
            seed: job.drafts[0].draw.bits() >> 1,
        };
        let mut choices = self.client.complete(&ask, || job.is_wanted())?;
        for choice in &mut choices {
            let bytes = choice.text.len();
            if bytes > steps.saturating_mul(RemoteProposer::TOKEN_BYTES) {
                let reason = format!("it sent {bytes} bytes of text for at most {steps} tokens");
                return Err(self.client.error(reason));
            }
            if !choice.ended {
                // A character that was cut comes out broken; the next chunk begins before it.
                let whole = choice.text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
                choice.text.truncate(whole);
            }
        }
        if greedy {
            let first = choices[0].clone();
            choices.resize(job.drafts.len(), first);
        }
        let rest = &job.drafts[choices.len().min(job.drafts.len())..];
        if !rest.is_empty() {
            self.choices.fetch_min(choices.len(), Ordering::Relaxed);
        }
        Ok((choices, job.parts(rest, self.choices.load(Ordering::Relaxed))))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
