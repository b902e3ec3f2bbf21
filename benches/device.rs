//! Every op on a device, with real models' shapes and random numbers: time, bytes, operations, and
//! the share of what the device's own page copies and its best matmul reach in the same run.
//!
//! `cargo bench --bench device -- --device cuda [--shape gpt2]... [--json]`; the bundle that
//! tools/bundle.sh makes runs it on machines without cargo. criterion's statistics would need the
//! device to be waited for after every launch; here many launches are timed together.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::backend::{Attention, Backend, Heads, PAGE_LEN, PoolShape, SampleRow, Segment};
use trimtab::philox::Draw;
use trimtab::tensor::{Element, HostMatrix, bf16};

const REPEATS: usize = 5;
/// Long enough for a clock, short enough for hundreds of rows.
const SECONDS_PER_REPEAT: f64 = 0.02;

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    heads: Heads,
    width: usize,
    feed_forward: usize,
    vocab: usize,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "gpt2",
        heads: Heads { query: 12, kv: 12, dim: 64 },
        width: 768,
        feed_forward: 3072,
        vocab: 50_257,
    },
    Shape {
        name: "gpt2-xl",
        heads: Heads { query: 25, kv: 25, dim: 64 },
        width: 1600,
        feed_forward: 6400,
        vocab: 50_257,
    },
    Shape {
        name: "llama-1b",
        heads: Heads { query: 32, kv: 8, dim: 64 },
        width: 2048,
        feed_forward: 8192,
        vocab: 128_256,
    },
    Shape {
        name: "llama-8b",
        heads: Heads { query: 32, kv: 8, dim: 128 },
        width: 4096,
        feed_forward: 14_336,
        vocab: 128_256,
    },
];

/// Times ops on one device and prints a row for each.
struct Bench<'a, B: Backend> {
    backend: &'a B,
    json: bool,
    /// Copied and written bytes per second of copy_pages.
    bandwidth: f64,
    probe: B::Buffer<u32>,
}

impl<B: Backend> Bench<'_, B> {
    /// Random numbers between −1 and 1 on the device.
    fn numbers<T: Element>(&self, len: usize) -> B::Buffer<T> {
        let mut state = 0x9E37_79B9_u32;
        let values: Vec<T> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                T::from_f64(f64::from(state >> 8) / f64::from(1 << 23) - 1.0)
            })
            .collect();
        self.upload(&values)
    }

    fn upload<T: Element>(&self, values: &[T]) -> B::Buffer<T> {
        let mut buffer = self.backend.alloc(values.len()).unwrap();
        self.backend.upload(values, &mut buffer).unwrap();
        buffer
    }

    fn matrix(&self, rows: usize, cols: usize) -> B::Matrix {
        let data: Vec<bf16> =
            (0..rows * cols).map(|i| bf16::from_f32((i % 8191) as f32 / 4096.0 - 1.0)).collect();
        self.backend.matrix(HostMatrix::new(rows, cols, data)).unwrap()
    }

    /// Seconds that `op` takes: the median of some repeats of many launches.
    fn seconds(&self, mut op: impl FnMut()) -> f64 {
        let mut probe = [0];
        let mut time = |launches: usize| {
            self.backend.download(&self.probe, &mut probe).unwrap();
            let started = Instant::now();
            for _ in 0..launches {
                op();
            }
            self.backend.download(&self.probe, &mut probe).unwrap();
            started.elapsed().as_secs_f64() / launches as f64
        };
        time(2);
        let launches = (SECONDS_PER_REPEAT / time(1)).clamp(1.0, 1000.0) as usize;
        let mut times: Vec<f64> = (0..REPEATS).map(|_| time(launches)).collect();
        times.sort_by(f64::total_cmp);
        times[REPEATS / 2]
    }

    /// Times `op`, which moves `bytes` and adds and multiplies `flops` times.
    fn row(&self, name: &str, bytes: usize, flops: usize, op: impl FnMut()) {
        let seconds = self.seconds(op);
        let (gb, tflops) = (bytes as f64 / seconds / 1e9, flops as f64 / seconds / 1e12);
        let share = bytes as f64 / seconds / self.bandwidth;
        if self.json {
            let row = serde_json::json!({"name": name, "unit": "us", "median": seconds * 1e6,
                "n": REPEATS, "gb_per_s": gb, "tflop_per_s": tflops, "share_of_copy": share});
            println!("{row}");
        } else {
            let us = seconds * 1e6;
            println!(
                "{name:<44} {us:>10.1} µs {gb:>9.1} GB/s {:>5.0} % {tflops:>9.2} TFLOP/s",
                share * 100.0
            );
        }
    }

    fn products(&self, shape: &Shape, rows: usize) {
        let Shape { name, heads, width, feed_forward, vocab } = *shape;
        for (what, inputs, outputs) in
            [("qkv", width, heads.qkv_width()), ("up", width, feed_forward)]
        {
            let (x, weight) = (self.numbers::<bf16>(rows * inputs), self.matrix(outputs, inputs));
            let mut out = self.numbers::<bf16>(rows * outputs);
            let bytes = 2 * (inputs * outputs + rows * (inputs + outputs));
            let name = format!("matmul/{name}/{what}/{rows}");
            self.row(&name, bytes, 2 * rows * inputs * outputs, || {
                self.backend.matmul(rows, &x, &weight, None, &mut out).unwrap();
            });
        }
        let (x, weight) =
            (self.numbers::<bf16>(rows * feed_forward), self.matrix(width, feed_forward));
        let mut residual = self.numbers::<f32>(rows * width);
        let bytes = 2 * (feed_forward * width + rows * feed_forward) + 8 * rows * width;
        let flops = 2 * rows * feed_forward * width;
        self.row(&format!("matmul_add/{name}/down/{rows}"), bytes, flops, || {
            self.backend.matmul_add(rows, &x, &weight, None, &mut residual).unwrap();
        });
        let (x, head) = (self.numbers::<bf16>(rows * width), self.matrix(vocab, width));
        let flops = 2 * rows * width * vocab;
        if rows <= 64 {
            let mut logits = self.numbers::<f32>(rows * vocab);
            let bytes = 2 * width * vocab + 4 * rows * vocab;
            self.row(&format!("logits/{name}/{rows}"), bytes, flops, || {
                self.backend.logits(rows, &x, &head, &mut logits).unwrap();
            });
            let settings: Vec<SampleRow> = (0..rows as u32)
                .map(|candidate| SampleRow {
                    temperature: 0.7,
                    top_k: 50,
                    top_p: 1.0,
                    draw: Draw { candidate, ..Draw::default() },
                })
                .collect();
            let mut tokens = self.upload(&vec![0; rows]);
            self.row(&format!("sample/{name}/{rows}"), 4 * rows * vocab, 0, || {
                self.backend.sample(&settings, vocab, &logits, &mut tokens).unwrap();
            });
        }
        let targets = self.upload(&vec![7; rows]);
        let mut logprobs = self.numbers::<f32>(rows);
        self.row(&format!("logprobs/{name}/{rows}"), 2 * width * vocab, flops, || {
            self.backend.logprobs(rows, &x, &head, &targets, &mut logprobs).unwrap();
        });
    }

    fn rowwise(&self, shape: &Shape, rows: usize) {
        let Shape { name, width, feed_forward, .. } = *shape;
        let (x, vector) = (self.numbers::<f32>(rows * width), self.numbers::<f32>(width));
        let mut half = self.numbers::<bf16>(rows * 2 * feed_forward);
        let mut gated = self.numbers::<bf16>(rows * feed_forward);
        self.row(&format!("rms_norm/{name}/{rows}"), 6 * rows * width, 0, || {
            self.backend.rms_norm(rows, &x, &vector, 1e-5, &mut half).unwrap();
        });
        self.row(&format!("layer_norm/{name}/{rows}"), 6 * rows * width, 0, || {
            self.backend.layer_norm(rows, &x, &vector, &vector, 1e-5, &mut half).unwrap();
        });
        self.row(&format!("gelu/{name}/{rows}"), 4 * rows * feed_forward, 0, || {
            self.backend.gelu(rows, feed_forward, &mut half).unwrap();
        });
        self.row(&format!("silu_gate/{name}/{rows}"), 6 * rows * feed_forward, 0, || {
            self.backend.silu_gate(rows, feed_forward, &half, &mut gated).unwrap();
        });
    }

    /// One layer; each of `sequences` has `rows` new rows that end at `end`, and all share the first
    /// `shared` positions, whole pages. The bytes are those of distinct pages.
    fn attention(&self, shape: &Shape, sequences: usize, rows: usize, end: usize, shared: usize) {
        let heads = shape.heads;
        let stride = end.div_ceil(PAGE_LEN);
        let prompt = shared / PAGE_LEN;
        let own = stride - prompt;
        let pool_shape = PoolShape { layers: 1, pages: prompt + sequences * own, heads };
        let (pool, all) = (self.numbers::<bf16>(pool_shape.len()), sequences * rows);
        let qkv = self.numbers::<bf16>(all * heads.qkv_width());
        let mut out = self.numbers::<bf16>(all * heads.query_width());
        let first_position = end - rows;
        let segments: Vec<Segment> = (0..sequences)
            .map(|index| Segment { first_row: index * rows, rows, first_position })
            .collect();
        let position = |row| (first_position + row % rows) as u32;
        let positions = self.upload(&(0..all).map(position).collect::<Vec<_>>());
        let row_segments =
            self.upload(&(0..all).map(|row| (row / rows) as u32).collect::<Vec<_>>());
        let page = |sequence: usize, index: usize| {
            (index + if index < prompt { 0 } else { sequence * own }) as u32
        };
        let table = |sequence| (0..stride).map(move |index| page(sequence, index));
        let tables = self.upload(&(0..sequences).flat_map(table).collect::<Vec<_>>());
        let distinct = shared + sequences * (end - shared);
        let bytes = distinct * heads.kv * heads.dim * 4;
        let flops = 4 * all * end * heads.query * heads.dim;
        let sharing = if shared > 0 { format!(", {shared} shared") } else { String::new() };
        let name = format!("attention/{}/{sequences} x {rows} to {end}{sharing}", shape.name);
        self.row(&name, bytes, flops, || {
            let args = Attention {
                layer: 0,
                shape: pool_shape,
                window: None,
                scale: 0.1,
                qkv: &qkv,
                pool: &pool,
                segments: &segments,
                positions: &positions,
                row_segments: &row_segments,
                tables: &tables,
                table_stride: stride,
                out: &mut out,
            };
            self.backend.attention(args).unwrap();
        });
    }
}

/// All rows for the wanted shapes.
fn run<B: Backend>(backend: &B, wanted: &[String], json: bool) {
    eprintln!("{}", backend.describe());
    let probe = backend.alloc(1).unwrap();
    let mut bench = Bench { backend, json, bandwidth: f64::NAN, probe };
    // Pages of a large model: 256 copies of 4 MB, beyond any cache.
    let heads = Heads { query: 32, kv: 32, dim: 128 };
    let shape = PoolShape { layers: 16, pages: 512, heads };
    let copies: Vec<(u32, u32)> = (0..256).map(|page| (page, page + 256)).collect();
    let bytes = 2 * copies.len() * shape.page_bytes();
    let mut pool = backend.alloc(shape.len()).unwrap();
    let seconds = bench.seconds(|| backend.copy_pages(shape, &copies, &mut pool).unwrap());
    bench.bandwidth = bytes as f64 / seconds;
    bench.row("copy_pages", bytes, 0, || backend.copy_pages(shape, &copies, &mut pool).unwrap());
    drop(pool);
    for shape in SHAPES {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == shape.name) {
            continue;
        }
        for rows in [1, 16, 64, 512] {
            bench.products(&shape, rows);
        }
        bench.rowwise(&shape, 16);
        for (sequences, rows, end, shared) in [
            (16, 1, 128, 0),
            (16, 1, 1000, 0),
            // Candidates of one prompt, decoded and scored.
            (16, 1, 1030, 1000 / PAGE_LEN * PAGE_LEN),
            (16, 30, 1030, 1000 / PAGE_LEN * PAGE_LEN),
            (16, 30, 300, 0),
            (1, 512, 512, 0),
        ] {
            bench.attention(&shape, sequences, rows, end, shared);
        }
    }
}

fn main() {
    let mut wanted = Vec::new();
    let (mut device, mut json) = ("cpu".to_owned(), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--device" => device = args.next().expect("--device needs a name"),
            "--shape" => wanted.push(args.next().expect("--shape needs a name")),
            "--json" => json = true,
            // What cargo adds.
            "--bench" => {}
            _ => panic!("{arg} is not known: --device cpu|cuda, --shape NAME, --json"),
        }
    }
    match device.as_str() {
        "cpu" => {
            let cpu = CpuBackend::new(None).unwrap();
            cpu.enter(|| run(&cpu, &wanted, json));
        }
        "cuda" => run(&CudaBackend::open().unwrap(), &wanted, json),
        _ => panic!("--device {device} is not known: cpu or cuda"),
    }
}
