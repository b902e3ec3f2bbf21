//! Engines on every device: queues that run side by side, rows that end or that siblings share, and
//! the memory that is taken.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use trimtab::backend::cuda::{CudaBackend, Driver};

#[path = "../oracle/mod.rs"]
mod oracle;

mod device_memory;
mod ends;
mod queues;
mod siblings;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The GPU, if `TRIMTAB_TEST_DEVICE` says that it is to be tested.
fn gpu() -> Option<Arc<CudaBackend<Driver>>> {
    let wanted = std::env::var_os("TRIMTAB_TEST_DEVICE").is_some_and(|device| device == "cuda");
    wanted.then(|| Arc::new(CudaBackend::open().unwrap()))
}
