//! Whole models against transformers.
//!
//! Two steps. First the oracle runs our forward pass in f64: it must give transformers' float64
//! log-probabilities almost exactly, which proves architecture, names and layout. Then the CPU
//! runs the same with bf16 activations and f32 sums, within the tolerance that rounding explains.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::path::PathBuf;
use std::sync::Arc;

use oracle::Oracle;
use trimtab::backend::Backend;
use trimtab::backend::cpu::{CpuBackend, Isa};
use trimtab::backend::cuda::CudaBackend;
use trimtab::engine::{Engine, Limits, Model, Span};
use trimtab::kv_cache::PagePool;

const MODELS: [&str; 7] =
    ["gpt2", "gpt2_bare", "gpt2_tuned", "llama", "llama_tuned", "llama3", "mistral"];

struct Golden {
    tokens: Vec<u32>,
    logits_last: Vec<f64>,
    logprobs: Vec<f64>,
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(folder(name).join("golden.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |field: &str| -> Vec<f64> {
        value[field].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    Golden {
        tokens: numbers("tokens").into_iter().map(|token| token as u32).collect(),
        logits_last: numbers("logits_last"),
        logprobs: numbers("logprobs"),
    }
}

fn engine<B: Backend>(backend: &Arc<B>, name: &str, rows: usize) -> Engine<B> {
    let model = Model::open(&**backend, &folder(name), None).unwrap();
    Engine::new(backend.clone(), model, Limits { pages: 64, rows, logit_rows: 4 }).unwrap()
}

/// The log-probabilities of all tokens but the first, and the logits after the last.
fn run<B: Backend>(engine: &mut Engine<B>, tokens: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let pool = PagePool::new(64);
    let mut sequence = pool.sequence();
    sequence.append(tokens.len()).unwrap();
    let span = Span::new(tokens, 0, &sequence);
    // The last row's target does not matter; its log-probability is dropped.
    let targets: Vec<u32> = tokens[1..].iter().copied().chain([0]).collect();
    let mut logprobs = engine.logprobs(&[span], &targets).unwrap();
    logprobs.pop();
    // Once more the last token, whose keys and values come out the same.
    let start = tokens.len() - 1;
    engine.begin(&[Span::new(&tokens[start..], start, &sequence)], 1).unwrap();
    engine.next_logits().unwrap();
    (logprobs, engine.read_logits().unwrap())
}

fn worst(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

/// Goal: our forward pass is transformers' forward pass, for every family.
///
/// Tolerance: both are f64 but for the f32 numbers handed over at the end (2^-24 relative, logits
/// up to about 16: 1e-6) and for the cosines and sines, which both sides take from f32 tables
/// whose last bits may differ (1e-7 per rotation, grown by the layers): 2e-5.
#[test]
fn the_oracle_agrees_with_transformers() {
    for name in MODELS {
        let golden = golden(name);
        let mut engine = engine(&Arc::new(Oracle), name, 128);
        let (logprobs, logits) = run(&mut engine, &golden.tokens);
        let (p, l) = (worst(&logprobs, &golden.logprobs), worst(&logits, &golden.logits_last));
        assert!(p < 2e-5 && l < 2e-5, "{name}: log-probs off by {p:e}, logits by {l:e}");
    }
}

/// Goal: the CPU gives transformers' log-probabilities, on every instruction set it has.
///
/// Tolerance: each activation is rounded to bf16, a relative error of at most 2^-9 and of about
/// 2^-10.8 in the mean square. A tiny model has some 14 such roundings between embedding and
/// logits; as independent errors they grow to sqrt(14) · 2^-10.8 ≈ 0.2 % of the logits' spread
/// (below 20 here): 0.04 in the mean square, 5 sigma over all positions: 0.2. The mean absolute
/// error must be far smaller, below 0.04.
fn agrees_with_transformers<B: Backend>(device: &str, backend: &Arc<B>) {
    for name in MODELS {
        let golden = golden(name);
        let (logprobs, logits) = run(&mut engine(backend, name, 128), &golden.tokens);
        let (p, l) = (worst(&logprobs, &golden.logprobs), worst(&logits, &golden.logits_last));
        let mean = logprobs
            .iter()
            .zip(&golden.logprobs)
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .sum::<f64>()
            / logprobs.len() as f64;
        println!("{device} {name}: log-probs off by {p:.4} at most, {mean:.4} in the mean");
        assert!(p < 0.2 && l < 0.2, "{device} {name}: log-probs off by {p}, logits by {l}");
        assert!(mean < 0.04, "{device} {name}: log-probs off by {mean} in the mean");
    }
}

#[test]
fn the_cpu_agrees_with_transformers() {
    for isa in Isa::available() {
        let backend = Arc::new(CpuBackend::with_isa(isa, Some(2)).unwrap());
        agrees_with_transformers(&format!("{isa:?}"), &backend);
    }
}

/// Goal: so do the kernels, on the emulator and where there is one on a GPU. The same tolerance:
/// what is rounded to bf16 is the same.
#[test]
fn the_kernels_agree_with_transformers() {
    agrees_with_transformers("emulator", &Arc::new(CudaBackend::emulated(3).unwrap()));
    if gpu_wanted() {
        agrees_with_transformers("cuda", &Arc::new(CudaBackend::open().unwrap()));
    }
}

fn gpu_wanted() -> bool {
    std::env::var_os("TRIMTAB_TEST_DEVICE").is_some_and(|device| device == "cuda")
}

/// Goal: a row's bits do not depend on how the tokens were cut into spans, on the size of the
/// batch's windows, on the neighbours, or on the number of threads.
#[test]
fn the_same_bits_however_tokens_are_batched() {
    let cpu = |threads| Arc::new(CpuBackend::new(Some(threads)).unwrap());
    for name in ["gpt2", "llama3", "mistral"] {
        let whole = {
            let golden = golden(name);
            run(&mut engine(&cpu(1), name, 128), &golden.tokens[..60]).0
        };
        for (threads, rows, step) in [(2, 128, 1), (1, 7, 60), (2, 16, 9), (2, 5, 17)] {
            let cut = in_pieces(&cpu(threads), name, rows, step);
            assert_eq!(bits(&cut), bits(&whole), "{name}: {threads} threads, {rows} rows, {step}");
        }
    }
}

/// Goal: the same of the kernels, which choose others for few rows than for many, and of the order
/// in which threads run.
#[test]
fn the_kernels_give_the_same_bits_however_tokens_are_batched() {
    for name in ["gpt2", "llama3", "mistral"] {
        let tokens = &golden(name).tokens[..60];
        let emulator = |seed| Arc::new(CudaBackend::emulated(seed).unwrap());
        let whole = run(&mut engine(&emulator(1), name, 128), tokens).0;
        for (seed, rows, step) in [(2, 128, 1), (3, 5, 17), (4, 128, 60)] {
            let cut = in_pieces(&emulator(seed), name, rows, step);
            assert_eq!(bits(&cut), bits(&whole), "{name}: order {seed}, {rows} rows, {step}");
        }
        if gpu_wanted() {
            let gpu = Arc::new(CudaBackend::open().unwrap());
            let whole = run(&mut engine(&gpu, name, 128), tokens).0;
            for (rows, step) in [(128, 1), (7, 60), (16, 9), (5, 17)] {
                assert_eq!(
                    bits(&in_pieces(&gpu, name, rows, step)),
                    bits(&whole),
                    "{name} on cuda"
                );
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The log-probabilities of a model's first 60 golden tokens, run `step` at a time and at most
/// `rows` together, with a neighbour of another length in each batch.
fn in_pieces<B: Backend>(backend: &Arc<B>, name: &str, rows: usize, step: usize) -> Vec<f32> {
    let golden = golden(name);
    let tokens = &golden.tokens[..60];
    let mut engine = engine(backend, name, rows);
    let pool = PagePool::new(64);
    let (mut sequence, mut neighbour) = (pool.sequence(), pool.sequence());
    let mut logprobs = Vec::new();
    for start in (0..tokens.len()).step_by(step) {
        let end = tokens.len().min(start + step);
        let (other_start, extra) = (neighbour.len(), &golden.tokens[start..start + 1]);
        neighbour.append(1).unwrap();
        sequence.append(end - start).unwrap();
        let spans = [
            Span::new(extra, other_start, &neighbour),
            Span::new(&tokens[start..end], start, &sequence),
        ];
        let targets: Vec<u32> = (start..=end)
            .map(|i| if i == start { 0 } else { *tokens.get(i).unwrap_or(&0) })
            .collect();
        logprobs.extend(&engine.logprobs(&spans, &targets).unwrap()[1..]);
    }
    logprobs.pop();
    logprobs
}

/// Goal: tensors that are equal in tuned and untuned are stored once, and change nothing.
#[test]
fn twins_share_their_equal_matrices() {
    let backend = Arc::new(CpuBackend::new(Some(1)).unwrap());
    for (tuned, untuned) in [("gpt2_tuned", "gpt2"), ("llama_tuned", "llama")] {
        let first = Model::open(&*backend, &folder(tuned), None).unwrap();
        let second = Model::open(&*backend, &folder(untuned), Some(&first)).unwrap();
        assert_eq!(first.shared_matrices, 0);
        assert!(second.shared_matrices > 0, "{tuned} and {untuned} share something");
        let limits = Limits { pages: 64, rows: 128, logit_rows: 4 };
        let golden = golden(untuned);
        let shared =
            run(&mut Engine::new(backend.clone(), second, limits).unwrap(), &golden.tokens);
        let alone = run(&mut engine(&backend, untuned, 128), &golden.tokens);
        assert_eq!(shared, alone);
    }
}
