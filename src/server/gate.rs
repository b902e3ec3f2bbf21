//! Whether requests are taken, and who is still being answered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::refusal::Refusal;

/// Lets requests in between loading and draining.
pub struct Gate {
    state: Mutex<State>,
    opened: Notify,
}

enum State {
    Loading,
    /// Each request that is being answered holds a clone of `pass`; when the last one is gone,
    /// `left` ends.
    Open {
        pass: mpsc::Sender<()>,
        left: mpsc::Receiver<()>,
    },
    Draining,
}

/// Held by a request until it is answered.
pub struct Pass {
    _held: mpsc::Sender<()>,
}

impl Gate {
    /// Shut until [`Gate::open`].
    pub fn new() -> Self {
        Self { state: Mutex::new(State::Loading), opened: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests in from now on, unless it was closed before.
    pub fn open(&self) {
        let mut state = self.state();
        if matches!(*state, State::Loading) {
            let (pass, left) = mpsc::channel(1);
            *state = State::Open { pass, left };
            self.opened.notify_waiters();
        }
    }

    /// Waits until it is open, or has been.
    pub async fn opened(&self) {
        let opened = self.opened.notified();
        if matches!(*self.state(), State::Loading) {
            opened.await;
        }
    }

    /// Lets one in.
    ///
    /// # Errors
    /// 503 while the models are being loaded, or while the last requests are being answered.
    pub fn enter(&self) -> Result<Pass, Refusal> {
        match &*self.state() {
            State::Loading => Err(Refusal::unavailable("the models are being loaded")),
            State::Open { pass, .. } => Ok(Pass { _held: pass.clone() }),
            State::Draining => Err(Refusal::unavailable("the server is about to stop")),
        }
    }

    /// Lets nobody in any more and waits for all who are inside. False if it never was open.
    pub async fn drain(&self) -> bool {
        let before = std::mem::replace(&mut *self.state(), State::Draining);
        let State::Open { pass, mut left } = before else { return false };
        drop(pass);
        while left.recv().await.is_some() {}
        true
    }
}
