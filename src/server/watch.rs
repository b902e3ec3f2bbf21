//! Whether the threads that do the work get on with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Since when each thread that works is at one piece of work.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<Vec<Option<Instant>>>>);

/// One of the threads.
pub struct Worker {
    watch: Watch,
    index: usize,
}

impl Watch {
    fn since(&self) -> MutexGuard<'_, Vec<Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another thread, at rest.
    pub fn worker(&self) -> Worker {
        let mut since = self.since();
        since.push(None);
        Worker { watch: self.clone(), index: since.len() - 1 }
    }

    /// How long the thread that is stuck longest has been at one piece of work.
    pub fn longest(&self) -> Duration {
        self.since().iter().flatten().map(Instant::elapsed).max().unwrap_or_default()
    }
}

impl Worker {
    /// A piece of work begins.
    pub fn begins(&self) {
        self.watch.since()[self.index] = Some(Instant::now());
    }

    /// It is done, and there is none to follow yet.
    pub fn rests(&self) {
        self.watch.since()[self.index] = None;
    }
}
