//! Whether requests are taken, and who is still being answered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::refusal::Refusal;
use super::watch::Watch;

/// Lets requests in between loading and draining, unless the device fails.
pub struct Gate {
    state: Mutex<State>,
    opened: Notify,
    failed: Notify,
    stopped: Notify,
    /// Over the threads that do the work.
    pub watch: Watch,
}

struct State {
    phase: Phase,
    /// What everybody is told once the device has failed for good.
    failure: Option<Refusal>,
    /// The server has been asked to end.
    stopping: bool,
}

enum Phase {
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
        let state = State { phase: Phase::Loading, failure: None, stopping: false };
        Self {
            state: Mutex::new(state),
            opened: Notify::new(),
            failed: Notify::new(),
            stopped: Notify::new(),
            watch: Watch::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests in from now on, unless it was closed before.
    pub fn open(&self) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Loading) {
            let (pass, left) = mpsc::channel(1);
            state.phase = Phase::Open { pass, left };
            self.opened.notify_waiters();
        }
    }

    /// Waits until it is open, or has been.
    pub async fn opened(&self) {
        let opened = self.opened.notified();
        if matches!(self.state().phase, Phase::Loading) {
            opened.await;
        }
    }

    /// Lets nobody in any more, and says why.
    pub fn fail(&self, refusal: Refusal) {
        self.state().failure.get_or_insert(refusal);
        self.failed.notify_waiters();
    }

    /// Waits for [`Gate::fail`].
    pub async fn failed(&self) {
        let failed = self.failed.notified();
        if self.health().is_ok() {
            failed.await;
        }
    }

    /// Asks for the end, once the last requests are answered.
    pub fn stop(&self) {
        self.state().stopping = true;
        self.stopped.notify_waiters();
    }

    /// Waits for [`Gate::stop`].
    pub async fn stopped(&self) {
        let stopped = self.stopped.notified();
        if !self.state().stopping {
            stopped.await;
        }
    }

    /// Whether it makes sense to wait for this server.
    ///
    /// # Errors
    /// What [`Gate::fail`] was told.
    pub fn health(&self) -> Result<(), Refusal> {
        self.state().failure.clone().map_or(Ok(()), Err)
    }

    /// Lets one in.
    ///
    /// # Errors
    /// 503 while the models are being loaded, while the last requests are being answered, or once
    /// the device has failed.
    pub fn enter(&self) -> Result<Pass, Refusal> {
        let state = self.state();
        if let Some(refusal) = &state.failure {
            return Err(refusal.clone());
        }
        match &state.phase {
            Phase::Loading => Err(Refusal::unavailable("the models are being loaded")),
            Phase::Open { pass, .. } => Ok(Pass { _held: pass.clone() }),
            Phase::Draining => Err(Refusal::unavailable("the server is about to stop")),
        }
    }

    /// Lets nobody in any more and waits for all who are inside. False if it never was open.
    pub async fn drain(&self) -> bool {
        let before = std::mem::replace(&mut self.state().phase, Phase::Draining);
        let Phase::Open { pass, mut left } = before else { return false };
        drop(pass);
        while left.recv().await.is_some() {}
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: once the device has failed, health says why and nobody gets in, whether the server
    /// drains or not; the first reason stays.
    #[test]
    fn a_failure_is_told_to_everybody() {
        let gate = Gate::new();
        gate.open();
        assert!(gate.health().is_ok() && gate.enter().is_ok());
        let refusal = Refusal::unavailable("the device is gone");
        gate.fail(refusal.clone());
        gate.fail(Refusal::unavailable("again"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..2 {
            assert_eq!(gate.health(), Err(refusal.clone()));
            assert_eq!(gate.enter().err(), Some(refusal.clone()));
            runtime.block_on(gate.failed());
            runtime.block_on(gate.drain());
        }
    }
}
