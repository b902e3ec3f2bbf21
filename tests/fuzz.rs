//! The targets of `fuzz/` in short: over their corpora, and over changes of these that are always the same.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

#[path = "hostile/damage.rs"]
mod damage;
#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Changes that each target gets.
const CASES: usize = 600;

/// Goal: no bytes in place of a file or a flag that trimtab reads make it panic, or wait.
#[test]
fn every_parser_takes_or_refuses_any_bytes() {
    for (name, target) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut paths: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(paths.len() > 1, "{name} has no corpus");
        let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        let run = |bytes: &[u8], changes: &dyn std::fmt::Debug| {
            let started = Instant::now();
            let caught = std::panic::catch_unwind(|| target(bytes));
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
            assert!(caught.is_ok(), "{name} panics after {changes:?}: {shown}");
            let took = started.elapsed();
            assert!(
                took < Duration::from_secs(20),
                "{name} takes {took:?} after {changes:?}: {shown}"
            );
        };
        corpus.iter().for_each(|bytes| run(bytes, &"nothing"));
        for (case, damages) in damage::cases(CASES, damage::damages()).enumerate() {
            let bytes = corpus[case % corpus.len()].clone();
            run(&damages.iter().fold(bytes, |bytes, damage| damage.apply(bytes)), &damages);
        }
    }
}
