//! One row per op, with GPT-2 124M's shapes: `cargo bench --bench kernels`.
//!
//! 16 rows unless the row's name says otherwise. Matmuls report bytes of weights per second, to be
//! held against `memory_read`: the same threads adding up numbers from memory.
#![allow(missing_docs)] // criterion's macros
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::{
    Advance, Attention, Backend, Entries, Heads, Logits, PAGE_LEN, PoolShape, Qkv, SampleRow,
    Segment,
};
use trimtab::philox::Draw;
use trimtab::tensor::{Element, HostMatrix, bf16};

const ROWS: usize = 16;
const WIDTH: usize = 768;
const VOCAB: usize = 50_257;
const HEADS: Heads = Heads { query: 12, kv: 12, dim: 64 };
const POSITIONS: usize = 200;

type Buffer<T> = <CpuBackend as Backend>::Buffer<T>;

/// Numbers between −1 and 1 that repeat with a long period.
fn numbers<T: Element>(cpu: &CpuBackend, len: usize) -> Buffer<T> {
    let values: Vec<T> =
        (0..len).map(|i| T::from_f64(((i * 7919) % 2003) as f64 / 1001.5 - 1.0)).collect();
    let mut buffer = cpu.alloc(len).unwrap();
    cpu.upload(&values, &mut buffer).unwrap();
    buffer
}

fn indices(cpu: &CpuBackend, values: Vec<u32>) -> Buffer<u32> {
    let mut buffer = cpu.alloc(values.len()).unwrap();
    cpu.upload(&values, &mut buffer).unwrap();
    buffer
}

fn weight(cpu: &CpuBackend, rows: usize, cols: usize) -> <CpuBackend as Backend>::Matrix {
    let data: Vec<bf16> =
        (0..rows * cols).map(|i| bf16::from_f32((i % 251) as f32 / 125.0 - 1.0)).collect();
    cpu.matrix(HostMatrix::new(rows, cols, data)).unwrap()
}

fn memory(c: &mut Criterion) {
    let cpu = CpuBackend::new(None).unwrap();
    // Twice the head's weights, far beyond any cache.
    let values = vec![1.0f32; VOCAB * WIDTH];
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Bytes(size_of_val(&values[..]) as u64));
    group.bench_function("memory_read", |b| b.iter(|| cpu.sum(&values)));
    group.finish();
}

fn rowwise(c: &mut Criterion) {
    let cpu = CpuBackend::new(None).unwrap();
    let (x, vector) = (numbers::<f32>(&cpu, ROWS * WIDTH), numbers::<f32>(&cpu, WIDTH));
    let mut half = numbers::<bf16>(&cpu, ROWS * 4 * WIDTH);
    let mut out = numbers::<f32>(&cpu, ROWS * WIDTH);
    let table = weight(&cpu, 1024, WIDTH);
    let ids = indices(&cpu, (0..ROWS as u32).map(|i| i * 61).collect());
    let mut group = c.benchmark_group("rowwise");
    group.bench_function("embed", |b| b.iter(|| cpu.embed(ROWS, &ids, &table, &mut out).unwrap()));
    group.bench_function("embed_add", |b| {
        b.iter(|| cpu.embed_add(ROWS, &ids, &table, &mut out).unwrap());
    });
    group.bench_function("rms_norm", |b| {
        b.iter(|| cpu.rms_norm(ROWS, &x, &vector, 1e-5, &mut half).unwrap());
    });
    group.bench_function("layer_norm", |b| {
        b.iter(|| cpu.layer_norm(ROWS, &x, &vector, &vector, 1e-5, &mut half).unwrap());
    });
    // One angle for all, whose cosine and sine keep the numbers' size: they are turned in place again and again.
    let half = [[0.6; HEADS.dim / 2], [0.8; HEADS.dim / 2]].concat();
    let mut table = cpu.alloc(1024 * HEADS.dim).unwrap();
    cpu.upload(&half.repeat(1024), &mut table).unwrap();
    let mut qkv = numbers::<bf16>(&cpu, ROWS * HEADS.qkv_width());
    group.bench_function("rope", |b| {
        b.iter(|| cpu.rope(ROWS, HEADS, &ids, &table, &mut qkv).unwrap());
    });
    group.finish();
}

fn matmuls(c: &mut Criterion) {
    let cpu = CpuBackend::new(None).unwrap();
    let mut group = c.benchmark_group("matmuls");
    for (inputs, outputs) in [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)] {
        // Several layers' worth, so that the weights come from memory and not from a cache.
        let weights: Vec<_> = (0..16).map(|_| weight(&cpu, outputs, inputs)).collect();
        for rows in [1, 4, 16, 64, 512] {
            group.throughput(Throughput::Bytes((2 * inputs * outputs) as u64));
            let x = numbers::<bf16>(&cpu, rows * inputs);
            let mut out = numbers::<bf16>(&cpu, rows * outputs);
            let mut residual = numbers::<f32>(&cpu, rows * outputs);
            let shape = format!("{rows} x {inputs} -> {outputs}");
            let mut turn = weights.iter().cycle();
            group.bench_function(BenchmarkId::new("matmul", &shape), |b| {
                b.iter(|| cpu.matmul(rows, &x, turn.next().unwrap(), None, &mut out).unwrap());
            });
            group.bench_function(BenchmarkId::new("matmul_gelu", &shape), |b| {
                b.iter(|| cpu.matmul_gelu(rows, &x, turn.next().unwrap(), None, &mut out).unwrap());
            });
            group.bench_function(BenchmarkId::new("matmul_gelu_erf", &shape), |b| {
                b.iter(|| {
                    cpu.matmul_gelu_erf(rows, &x, turn.next().unwrap(), None, &mut out).unwrap();
                });
            });
            group.bench_function(BenchmarkId::new("matmul_add", &shape), |b| {
                b.iter(|| {
                    cpu.matmul_add(rows, &x, turn.next().unwrap(), None, &mut residual).unwrap();
                });
            });
            let mut turn = weights.chunks_exact(2).cycle();
            let pair = format!("{rows} x {inputs} -> 2 x {outputs}");
            group.throughput(Throughput::Bytes((4 * inputs * outputs) as u64));
            group.bench_function(BenchmarkId::new("matmul_silu_gate", &pair), |b| {
                b.iter(|| {
                    let [gate, up] = turn.next().unwrap() else { unreachable!("chunks of two") };
                    cpu.matmul_silu_gate(rows, &x, gate, up, None, &mut out).unwrap();
                });
            });
        }
    }
    group.finish();
}

/// An entry for each row: starts and list.
fn own_entries(cpu: &CpuBackend, rows: usize) -> (Buffer<u32>, Buffer<u32>) {
    let upto = |end| indices(cpu, (0..end).collect());
    (upto(rows as u32 + 1), upto(rows as u32))
}

fn heads(c: &mut Criterion) {
    let cpu = CpuBackend::new(None).unwrap();
    let head = weight(&cpu, VOCAB, WIDTH);
    let mut group = c.benchmark_group("head");
    group.throughput(Throughput::Bytes((2 * VOCAB * WIDTH) as u64));
    for rows in [1, 4, 16, 64, 160] {
        let (starts, list) = own_entries(&cpu, rows);
        let x = numbers::<bf16>(&cpu, rows * WIDTH);
        let mut logits = Logits::new(&cpu, rows, VOCAB).unwrap();
        let mut logprobs = numbers::<f32>(&cpu, rows);
        let targets = indices(&cpu, (0..rows as u32).map(|i| i * 97).collect());
        group.bench_function(BenchmarkId::new("logits", rows), |b| {
            b.iter(|| cpu.logits(rows, &x, &head, &mut logits).unwrap());
        });
        group.bench_function(BenchmarkId::new("logprobs", rows), |b| {
            b.iter(|| {
                let entries = Entries { rows, starts: &starts, list: &list };
                cpu.logprobs(&x, &head, entries, &targets, &mut logprobs).unwrap();
            });
        });
    }
    let logits =
        || Logits { values: numbers(&cpu, ROWS * VOCAB), ..Logits::new(&cpu, 0, VOCAB).unwrap() };
    let (tuned, untuned, mut logits) = (logits(), logits(), logits());
    group.throughput(Throughput::Elements((ROWS * VOCAB) as u64));
    group.bench_function("add_guidance", |b| {
        b.iter(|| {
            cpu.add_guidance(ROWS, 1e-9, &tuned, &untuned, &mut logits).unwrap();
        });
    });
    let mut tokens = indices(&cpu, vec![0; ROWS]);
    let rows: Vec<SampleRow> = (0..ROWS as u32)
        .map(|candidate| SampleRow {
            logits: candidate,
            temperature: 0.7,
            top_k: 50,
            top_p: 1.0,
            draw: Draw { candidate, ..Draw::default() },
        })
        .collect();
    group.bench_function("sample", |b| {
        b.iter(|| cpu.sample(black_box(&rows), &tuned, &mut tokens).unwrap());
    });
    let tables = indices(&cpu, vec![3; ROWS * 64]);
    let [mut next, mut slots, mut history] = [(); 3].map(|()| indices(&cpu, vec![0; ROWS]));
    let mut positions = indices(&cpu, vec![0; ROWS]);
    let ends = indices(&cpu, vec![2]);
    group.bench_function("advance", |b| {
        b.iter(|| {
            cpu.advance(Advance {
                rows: ROWS,
                step: 0,
                drawn: &tokens,
                ends: &ends,
                tables: &tables,
                table_stride: 64,
                tokens: &mut next,
                positions: &mut positions,
                slots: &mut slots,
                history: &mut history,
            })
            .unwrap();
        });
    });
    group.finish();
}

fn cache(c: &mut Criterion) {
    let cpu = CpuBackend::new(None).unwrap();
    let stride = POSITIONS.div_ceil(PAGE_LEN);
    let shape = PoolShape { layers: 12, pages: ROWS * stride, heads: HEADS };
    let mut pool = numbers::<bf16>(&cpu, shape.len());
    let qkv = numbers::<bf16>(&cpu, ROWS * HEADS.qkv_width());
    let slots = indices(&cpu, (0..ROWS).map(|row| (row * stride * PAGE_LEN) as u32).collect());
    let (starts, list) = own_entries(&cpu, ROWS);
    let mut group = c.benchmark_group("cache");
    group.bench_function("store_kv", |b| {
        b.iter(|| {
            let entries = Entries { rows: ROWS, starts: &starts, list: &list };
            cpu.store_kv(0, shape, &qkv, entries, &slots, &mut pool).unwrap();
        });
    });
    let width = HEADS.query_width();
    let weight = weight(&cpu, HEADS.qkv_width(), width);
    let (x, mut out) =
        (numbers::<bf16>(&cpu, ROWS * width), numbers(&cpu, ROWS * HEADS.qkv_width()));
    group.bench_function("qkv", |b| {
        b.iter(|| {
            let args = Qkv {
                layer: 0,
                shape,
                x: &x,
                weight: &weight,
                bias: None,
                rotary: None,
                entries: Entries { rows: ROWS, starts: &starts, list: &list },
                slots: &slots,
                pool: &mut pool,
                out: &mut out,
            };
            cpu.qkv(args).unwrap();
        });
    });
    let copies: Vec<(u32, u32)> = (0..ROWS as u32).map(|i| (i * 2, i * 2 + 1)).collect();
    group.bench_function("copy_pages", |b| {
        b.iter(|| cpu.copy_pages(shape, &copies, &mut pool).unwrap());
    });
    let segments: Vec<Segment> = (0..ROWS)
        .map(|row| Segment { first_row: row, rows: 1, first_position: POSITIONS - 1 })
        .collect();
    let positions = indices(&cpu, vec![POSITIONS as u32 - 1; ROWS]);
    let row_segments = indices(&cpu, (0..ROWS as u32).collect());
    let tables = indices(&cpu, (0..(ROWS * stride) as u32).collect());
    let mut out = numbers::<bf16>(&cpu, ROWS * HEADS.query_width());
    group.throughput(Throughput::Bytes((ROWS * POSITIONS * HEADS.kv * HEADS.dim * 4) as u64));
    let mut layer = (0..shape.layers).cycle();
    group.bench_function("attention", |b| {
        b.iter(|| {
            cpu.attention(Attention {
                layer: layer.next().unwrap(),
                shape,
                window: None,
                scale: 0.125,
                qkv: &qkv,
                pool: &pool,
                segments: &segments,
                positions: &positions,
                row_segments: &row_segments,
                tables: &tables,
                table_stride: stride,
                out: &mut out,
            })
            .unwrap();
        });
    });
    group.finish();
}

criterion_group!(all, memory, rowwise, matmuls, heads, cache);
criterion_main!(all);
