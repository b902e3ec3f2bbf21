//! Signals, on a thread that does nothing else: whatever hangs elsewhere, a second one ends the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::gate::Gate;
use super::log::say;

/// For the process to end by itself when it has been told to at once.
const LAST_RESORT: Duration = Duration::from_secs(2);

/// Tells the gate of the first SIGTERM or SIGINT, and ends the process at the second. Where there are no signals
/// to be caught, they kill, as they do without a handler.
pub fn heed(gate: Arc<Gate>) {
    std::thread::spawn(move || {
        let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let both = signal(SignalKind::terminate())
                .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
            let Ok(mut both) = both else { return };
            next(&mut both).await;
            say("answering the last requests; a second signal stops at once");
            gate.stop();
            next(&mut both).await;
            // What is run at the end of a process can hang too, a driver's part of it above all.
            std::thread::spawn(|| {
                std::thread::sleep(LAST_RESORT);
                std::process::abort();
            });
            std::process::exit(0);
        });
    });
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}
