//! Where requests are handed in and read, on threads of their own.
//!
//! Tokenising a long text takes as long as many steps of the models, and most texts that are too long are
//! found out only by that. The thread that owns the scheduler never waits for it, and a short request never
//! waits for a long one to be read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::engine::{Accepted, Job, Rejected, Submission};
use super::watch::Watch;
use crate::guide::Guide;
use crate::proposer::Proposer;
use crate::scheduler::{Reader, Ready};

/// Bytes of a request's texts that make it a long one.
const LONG: usize = 8 << 10;
/// Cores of the machine for each thread that reads long ones.
const CORES_PER_READER: usize = 4;

/// A request's jobs, as they came.
struct Unread {
    jobs: Vec<Job>,
    reply: oneshot::Sender<Result<Accepted, Rejected>>,
}

/// Where requests are handed in. The engine stops when all handles are gone and nothing is left.
#[derive(Clone)]
pub struct Handle {
    short: Sender<Unread>,
    long: Sender<Unread>,
}

/// The other end of all [`Handle`]s.
pub struct Inbox {
    short: Receiver<Unread>,
    long: Receiver<Unread>,
}

impl Handle {
    /// A handle, and where its requests are read.
    pub fn new() -> (Self, Inbox) {
        let ((short, short_end), (long, long_end)) = (channel(), channel());
        (Self { short, long }, Inbox { short: short_end, long: long_end })
    }

    /// Hands in a request's jobs; none if the engine is gone.
    pub async fn submit(&self, jobs: Vec<Job>) -> Option<Result<Accepted, Rejected>> {
        let (reply, answer) = oneshot::channel();
        let bytes: usize = jobs.iter().map(Job::bytes).sum();
        let lane = if bytes > LONG { &self.long } else { &self.short };
        lane.send(Unread { jobs, reply }).ok()?;
        answer.await.ok()
    }
}

impl Inbox {
    /// Starts the threads that read; what they have read comes out of the channel, which ends when all handles
    /// are gone.
    pub fn read<P: Proposer + 'static, G: Guide + 'static>(
        self,
        reader: &Reader<P, G>,
        watch: &Watch,
    ) -> Receiver<Submission<P, G>> {
        let (sender, submissions) = channel();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = [(self.short, 1), (self.long, (cores / CORES_PER_READER).max(1))];
        for (inbox, threads) in lanes {
            let inbox = Arc::new(Mutex::new(inbox));
            for _ in 0..threads {
                let (inbox, reader, sender) = (inbox.clone(), reader.clone(), sender.clone());
                let watched = watch.worker();
                std::thread::spawn(move || {
                    loop {
                        // Held while waiting: the others wait for the same.
                        let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(Unread { jobs, reply }) = next else { return };
                        watched.begins();
                        // A panic is this request's end alone: its reply is dropped.
                        let read = AssertUnwindSafe(|| read(&reader, jobs, &reply));
                        match catch_unwind(read) {
                            Ok(Some(Ok(jobs))) => _ = sender.send(Submission { jobs, reply }),
                            Ok(Some(Err(rejected))) => _ = reply.send(Err(rejected)),
                            Ok(None) | Err(_) => {}
                        }
                        watched.rests();
                    }
                });
            }
        }
        submissions
    }
}

/// What was read of a request, each with whether it is watched.
type ReadJobs<P, G> = Vec<(Ready<P, G>, bool)>;

/// Reads a request's jobs, each text once; none if the request has been given up.
fn read<P: Proposer, G: Guide>(
    reader: &Reader<P, G>,
    jobs: Vec<Job>,
    reply: &oneshot::Sender<Result<Accepted, Rejected>>,
) -> Option<Result<ReadJobs<P, G>, Rejected>> {
    let mut read = Vec::with_capacity(jobs.len());
    for job in jobs {
        if reply.is_closed() {
            return None;
        }
        let ready = match job {
            Job::Search { prompt, settings, seeds, watch, trace } => {
                let ready = reader.search(&prompt, settings);
                ready.map(|ready| {
                    let ready = if trace { ready } else { ready.untraced() };
                    let searches = seeds.into_iter().map(|seed| ready.clone().with_seed(seed));
                    read.extend(searches.map(|search| (search, watch)));
                })
            }
            Job::Given { prompt, response, ended } => {
                let ready = reader.given(&prompt, response, ended);
                ready.map(|ready| read.push((ready, false)))
            }
        };
        if let Err(error) = ready {
            return Some(Err(Rejected::Impossible(read.len(), error)));
        }
    }
    Some(Ok(read))
}
