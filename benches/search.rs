//! Whole searches with three models of GPT-2 124M's shape and random weights on the CPU: the search,
//! best of N and plain sampling, alone and together.
//!
//! `cargo bench --bench search`, with `-- --quick` for a first impression. `trimtab bench search`
//! measures other models and devices, splits the time, and states the machine's bounds.
#![allow(missing_docs)] // criterion's macros
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use trimtab::backend::cpu::CpuBackend;
use trimtab::cli::bench::{Shape, Trio};
use trimtab::proposer::{Prompt, Sampling, StopStrings};
use trimtab::scheduler::Scheduler;
use trimtab::search::Settings;

const PROMPT: usize = 32;
/// Tokens of a response: two chunks.
const TOKENS: usize = 20;

/// Name, beams, successors and tokens of a chunk.
const METHODS: [(&str, usize, usize, Option<usize>); 3] =
    [("cbs 4,4,10", 4, 4, Some(10)), ("bon 16", 1, 16, None), ("sample", 1, 1, None)];

fn search(c: &mut Criterion) {
    let cpu = Arc::new(CpuBackend::new(None).unwrap());
    let mut group = c.benchmark_group("search");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_secs(1));
    for (name, beam_width, successors, chunk_len) in METHODS {
        let settings = Settings {
            beam_width,
            successors,
            chunk_len,
            max_new_tokens: TOKENS,
            sampling: Sampling { temperature: 0.7, top_k: 50, top_p: 1.0 },
            seed: 1,
            stop: StopStrings::default(),
            compat: false,
        };
        for together in [1, 4] {
            let pages = together * settings.lifetime().pages(PROMPT);
            let trio = Trio::random(&cpu, Shape::Gpt2, Shape::Gpt2, pages).unwrap();
            let mut scheduler = Scheduler::new(trio.proposer, trio.scorer, together);
            let prompts: Vec<Prompt> = (0..together)
                .map(|text| {
                    let words = (0..PROMPT).map(|place| format!("t{}", text * PROMPT + place));
                    Prompt::Text(words.collect::<Vec<_>>().join(" "))
                })
                .collect();
            group.throughput(Throughput::Elements((together * TOKENS) as u64));
            group.bench_function(BenchmarkId::new(name, together), |b| {
                b.iter(|| {
                    for (id, prompt) in prompts.iter().enumerate() {
                        scheduler.submit(id, prompt, settings.clone()).unwrap();
                    }
                    while scheduler.pending() > 0 {
                        scheduler.tick().unwrap();
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(all, search);
criterion_main!(all);
