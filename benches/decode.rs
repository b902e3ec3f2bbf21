//! A model of GPT-2 124M's shape with random weights on the CPU: prompts, the next token of several
//! sequences, the log-probabilities of given texts.
//!
//! `cargo bench --bench decode`, with `-- --quick` for a first impression. `trimtab bench decode`
//! measures other models and devices, beside the machine's bounds.
#![allow(missing_docs)] // criterion's macros
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use trimtab::backend::SampleRow;
use trimtab::backend::cpu::CpuBackend;
use trimtab::cli::bench::Shape;
use trimtab::engine::{Engine, Limits, Model, Span};
use trimtab::kv_cache::{PAGE_LEN, PagePool, Sequence};
use trimtab::philox::Draw;

const PROMPT: usize = 64;
const BATCHES: [usize; 3] = [1, 4, 16];

/// Texts of a prompt's length, and one more token.
fn texts(count: usize, vocab: usize) -> Vec<Vec<u32>> {
    let token = |text: usize, place: usize| ((text * 7919 + place * 104_729) % vocab) as u32;
    (0..count).map(|text| (0..=PROMPT).map(|place| token(text, place)).collect()).collect()
}

/// The first `PROMPT` tokens of each text.
fn spans<'a>(texts: &'a [Vec<u32>], sequences: &'a [Sequence]) -> Vec<Span<'a>> {
    let pairs = texts.iter().zip(sequences);
    pairs.map(|(text, sequence)| Span::new(&text[..PROMPT], 0, sequence)).collect()
}

fn decode(c: &mut Criterion) {
    let cpu = Arc::new(CpuBackend::new(None).unwrap());
    let most = BATCHES[BATCHES.len() - 1];
    let pages = most * (PROMPT + 1).div_ceil(PAGE_LEN);
    let model = Model::random(&*cpu, Shape::Gpt2.config().unwrap(), 1).unwrap();
    let limits = Limits { pages, rows: 512, logit_rows: most };
    let mut engine = Engine::new(cpu.clone(), model, limits).unwrap();

    let mut group = c.benchmark_group("decode");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_secs(1));
    for batch in BATCHES {
        let texts = texts(batch, engine.config().vocab);
        let pool = PagePool::new(pages);
        let mut sequences: Vec<Sequence> = texts.iter().map(|_| pool.sequence()).collect();
        for sequence in &mut sequences {
            sequence.append(PROMPT).unwrap();
        }
        let prompts = spans(&texts, &sequences);
        group.throughput(Throughput::Elements((batch * PROMPT) as u64));
        group.bench_function(BenchmarkId::new("prefill", batch), |b| {
            b.iter(|| engine.prefill(&prompts).unwrap());
        });
        let targets: Vec<u32> = texts.iter().flat_map(|text| &text[1..]).copied().collect();
        group.bench_function(BenchmarkId::new("logprobs", batch), |b| {
            b.iter(|| engine.logprobs(&prompts, &targets).unwrap());
        });

        // The same token again and again: what was written after the prompt is written over.
        for sequence in &mut sequences {
            sequence.append(1).unwrap();
        }
        let next: Vec<Span<'_>> = texts
            .iter()
            .zip(&sequences)
            .map(|(text, sequence)| Span::new(&text[PROMPT..], PROMPT, sequence))
            .collect();
        let draws: Vec<SampleRow> = (0..batch as u32)
            .map(|candidate| SampleRow {
                logits: candidate,
                temperature: 0.7,
                top_k: 50,
                top_p: 1.0,
                draw: Draw { candidate, ..Draw::default() },
            })
            .collect();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("step", batch), |b| {
            b.iter(|| {
                engine.begin(&next, 1).unwrap();
                engine.next_logits().unwrap();
                engine.draw(&draws).unwrap();
                engine.advance(0).unwrap();
                engine.drawn(1).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(all, decode);
criterion_main!(all);
