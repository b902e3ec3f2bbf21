//! Engines on every device: queues that run side by side, rows that end or that siblings share, and
//! the memory that is taken.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

#[path = "../oracle/mod.rs"]
mod oracle;

mod device_memory;
mod ends;
mod queues;
mod siblings;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}
