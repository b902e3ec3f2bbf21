//! Every op on a device, with real models' shapes and random numbers: how long it takes, what it moves
//! and computes in that time, and how near that is to the device's own page copies or its best
//! matmul, both measured in the same run.
//!
//! `cargo bench --bench device -- --device cuda [--shape gpt2]... [--json FILE]`; the bundle that
//! tools/bundle.sh makes runs it on machines without cargo. criterion's statistics would need the
//! device to be waited for after every launch; here many launches are timed together.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::backend::{
    Advance, Attention, Backend, Entries, Heads, LOGIT_GROUP, Logits, PAGE_LEN, PoolShape, Qkv,
    SampleRow, Segment,
};
use trimtab::cli::bench::{
    Fence, Format, Machine, Measured, Origin, Row, Shape, Work, print, save,
};
use trimtab::engine::Config;
use trimtab::engine::config::{Activation, Norm, Position};
use trimtab::error::Result;
use trimtab::philox::Draw;
use trimtab::tensor::{Element, HostMatrix, bf16, random};

const REPEATS: usize = 5;
/// Seconds: long enough for a clock, short enough for hundreds of rows.
const TIMED: f64 = 0.02;
/// Bytes: weights, keys and values of an op are taken from so many in turn, as those of a model's
/// layers are, and not from a cache.
const BEYOND_CACHES: usize = 192 << 20;
/// Rows of a decode step.
const FEW: usize = 16;

/// Where to compute
#[derive(Clone, Copy, ValueEnum)]
enum Device {
    Cpu,
    Cuda,
}

/// Times every op on a device.
#[derive(Parser)]
struct Args {
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// Models' shapes [default: gpt2, gpt2-xl, llama-1b, llama-8b]
    #[arg(long, value_enum)]
    shape: Vec<Shape>,
    /// Also write lines of JSON there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let done = match args.device {
        Device::Cpu => {
            let cpu = Arc::new(CpuBackend::new(None).unwrap());
            run(&cpu, &args)
        }
        Device::Cuda => CudaBackend::open().and_then(|gpu| run(&Arc::new(gpu), &args)),
    };
    if let Err(error) = done {
        eprintln!("device: {error}");
        std::process::exit(2);
    }
}

/// All rows for the wanted shapes.
fn run<B: Measured>(backend: &Arc<B>, args: &Args) -> Result<()> {
    let all = [Shape::Gpt2, Shape::Gpt2Xl, Shape::Llama1b, Shape::Llama8b];
    let shapes = if args.shape.is_empty() { &all[..] } else { &args.shape };
    let (machine, fence) = (Machine::measure(backend, BEYOND_CACHES)?, Fence::new(backend)?);
    let mut rows = machine.rows("kernels");
    for &shape in shapes {
        eprintln!("device: {}", shape.name());
        let config = shape.config()?;
        let mut bench =
            Bench { backend, machine: &machine, fence: &fence, shape, config, rows: Vec::new() };
        bench.products(&[1, FEW, 64, 160, 512])?;
        bench.rowwise(FEW)?;
        bench.head(FEW)?;
        bench.cache(FEW)?;
        for (sequences, new, end) in [(16, 1, 128), (16, 1, 1000), (16, 30, 300), (1, 512, 512)] {
            bench.attention(sequences, new, end, 0)?;
        }
        // Candidates that share a prompt.
        bench.attention(16, 1, 1000, 992)?;
        rows.extend(bench.rows);
    }
    let origin = Origin::now(backend.describe());
    args.json.as_ref().map_or(Ok(()), |file| save(&rows, file, &origin))?;
    print(&rows, Format::Table, &origin)
}

/// Times ops of one model on one device.
struct Bench<'a, B: Backend> {
    backend: &'a Arc<B>,
    machine: &'a Machine,
    fence: &'a Fence<B>,
    shape: Shape,
    config: Config,
    rows: Vec<Row>,
}

impl<B: Backend> Bench<'_, B> {
    /// Random numbers between −1 and 1 on the device.
    fn numbers<T: Element>(&self, len: usize) -> Result<B::Buffer<T>> {
        let numbers = random(len as u64, 1.0, len).into_iter();
        self.upload(&numbers.map(|number| T::from_f64(number.to_f64())).collect::<Vec<T>>())
    }

    fn upload<T: Element>(&self, values: &[T]) -> Result<B::Buffer<T>> {
        let mut buffer = self.backend.alloc(values.len())?;
        self.backend.upload(values, &mut buffer)?;
        Ok(buffer)
    }

    /// Matrices of one shape, more than fit into a cache.
    fn matrices(&self, rows: usize, cols: usize) -> Result<Vec<B::Matrix>> {
        let data = random(1, 1.0, rows * cols);
        let count = BEYOND_CACHES.div_ceil(size_of_val(&data[..]));
        (0..count).map(|_| self.backend.matrix(HostMatrix::new(rows, cols, &data[..]))).collect()
    }

    /// Seconds that `op` takes, given how many times it was called before: some repeats of many
    /// launches.
    fn seconds(&self, mut op: impl FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
        let mut turn = 0;
        let mut time = |launches: usize| -> Result<f64> {
            self.fence.wait()?;
            let started = Instant::now();
            for _ in 0..launches {
                op(turn)?;
                turn += 1;
            }
            self.fence.wait()?;
            Ok(started.elapsed().as_secs_f64() / launches as f64)
        };
        time(2)?;
        let launches = (TIMED / time(1)?).clamp(1.0, 1000.0) as usize;
        (0..REPEATS).map(|_| time(launches)).collect()
    }

    /// Times `op`, which moves `bytes` and adds and multiplies `operations` times for so many rows.
    fn row(
        &mut self,
        name: &str,
        count: usize,
        bytes: usize,
        operations: usize,
        op: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let work = Work { bytes: bytes as f64, operations: operations as f64 };
        let row = Row::new("kernels", name, "s", self.seconds(op)?).worked(self.machine, work);
        self.rows.push(Row { setting: self.shape.name().into(), batch: Some(count), ..row });
        Ok(())
    }

    /// A product that is rounded to bf16, with one matrix of `inputs` by `outputs` or with two, for each count
    /// of rows.
    fn matmul(
        &mut self,
        name: &str,
        counts: &[usize],
        (matrices, inputs, outputs): (usize, usize, usize),
        op: impl Fn(usize, &B::Buffer<bf16>, [&B::Matrix; 2], &mut B::Buffer<bf16>) -> Result<()>,
    ) -> Result<()> {
        let weights = self.matrices(outputs, inputs)?;
        for &count in counts {
            let x = self.numbers::<bf16>(count * inputs)?;
            let mut out = self.numbers::<bf16>(count * outputs)?;
            let bytes = 2 * (matrices * inputs * outputs + count * (inputs + outputs));
            self.row(name, count, bytes, 2 * matrices * count * inputs * outputs, |turn| {
                let weight = |at: usize| &weights[(turn * matrices + at) % weights.len()];
                op(count, &x, [weight(0), weight(1)], &mut out)
            })?;
        }
        Ok(())
    }

    /// The matmuls of a layer, and the log-probabilities of given tokens, of so many rows each.
    fn products(&mut self, counts: &[usize]) -> Result<()> {
        let backend = self.backend;
        let Config { heads, width, feed_forward, vocab, .. } = self.config;
        let qkv = (1, width, heads.qkv_width());
        self.matmul("matmul qkv", counts, qkv, |count, x, [weight, _], out| {
            backend.matmul(count, x, weight, None, out)
        })?;
        match self.config.activation {
            Activation::Gelu => {
                let up = (1, width, feed_forward);
                self.matmul("matmul_gelu up", counts, up, |count, x, [weight, _], out| {
                    backend.matmul_gelu(count, x, weight, None, out)
                })
            }
            Activation::GeluErf => {
                let up = (1, width, feed_forward);
                self.matmul("matmul_gelu_erf up", counts, up, |count, x, [weight, _], out| {
                    backend.matmul_gelu_erf(count, x, weight, None, out)
                })
            }
            Activation::SiluGate => {
                let up = (2, width, feed_forward);
                self.matmul("matmul_silu_gate up", counts, up, |count, x, [gate, up], out| {
                    backend.matmul_silu_gate(count, x, gate, up, None, out)
                })
            }
        }?;
        for (name, inputs) in
            [("matmul_add output", heads.query_width()), ("matmul_add down", feed_forward)]
        {
            let weights = self.matrices(width, inputs)?;
            for &count in counts {
                let x = self.numbers::<bf16>(count * inputs)?;
                let mut residual = self.numbers::<f32>(count * width)?;
                let bytes = 2 * (inputs * width + count * inputs) + 8 * count * width;
                self.row(name, count, bytes, 2 * count * inputs * width, |turn| {
                    let weight = &weights[turn % weights.len()];
                    backend.matmul_add(count, &x, weight, None, &mut residual)
                })?;
            }
        }
        let weights = self.matrices(vocab, width)?;
        for &count in counts {
            let x = self.numbers::<bf16>(count * width)?;
            let targets = self.upload(&vec![7; count])?;
            let mut logprobs = self.numbers::<f32>(count)?;
            let (starts, list) = self.own_entries(count)?;
            self.row("logprobs", count, 2 * width * vocab, 2 * count * width * vocab, |turn| {
                let head = &weights[turn % weights.len()];
                let entries = Entries { rows: count, starts: &starts, list: &list };
                backend.logprobs(&x, head, entries, &targets, &mut logprobs)
            })?;
        }
        for count in [1, FEW] {
            let x = self.numbers::<bf16>(count * width)?;
            let mut logits = Logits::new(&**backend, count, vocab)?;
            let bytes = 2 * width * (vocab + count) + 4 * count * vocab;
            self.row("logits", count, bytes, 2 * count * width * vocab, |turn| {
                backend.logits(count, &x, &weights[turn % weights.len()], &mut logits)
            })?;
        }
        Ok(())
    }

    /// What walks over rows.
    fn rowwise(&mut self, count: usize) -> Result<()> {
        let backend = self.backend;
        let Config { width, vocab, context, heads, .. } = self.config;
        let (x, weight) = (self.numbers::<f32>(count * width)?, self.numbers::<f32>(width)?);
        let mut out = self.numbers::<f32>(count * width)?;
        let mut half = self.numbers::<bf16>(count * width)?;
        let ids = self.upload(&(0..count as u32).map(|row| row * 61).collect::<Vec<_>>())?;
        let table = self.matrices(vocab, width)?;
        self.row("embed", count, 6 * count * width, 0, |turn| {
            backend.embed(count, &ids, &table[turn % table.len()], &mut out)
        })?;
        drop(table);
        match self.config.norm {
            Norm::Rms(eps) => self.row("rms_norm", count, 6 * count * width, 0, |_| {
                backend.rms_norm(count, &x, &weight, eps, &mut half)
            }),
            Norm::Layer(eps) => self.row("layer_norm", count, 6 * count * width, 0, |_| {
                backend.layer_norm(count, &x, &weight, &weight, eps, &mut half)
            }),
        }?;
        match self.config.position {
            Position::Learned => {
                let table = self.matrices(context, width)?;
                self.row("embed_add", count, 10 * count * width, 0, |turn| {
                    backend.embed_add(count, &ids, &table[turn % table.len()], &mut out)
                })
            }
            Position::Rotary(_) => {
                // One angle for all, whose cosine and sine keep the numbers' size: they are turned in place
                // again and again.
                let half = [vec![0.6; heads.dim / 2], vec![0.8; heads.dim / 2]].concat();
                let cos_sin = self.upload::<f32>(&half.repeat(count * 61))?;
                let mut qkv = self.numbers::<bf16>(count * heads.qkv_width())?;
                let turned = (heads.query + heads.kv) * heads.dim;
                self.row("rope", count, count * (4 * turned + 4 * heads.dim), 0, |_| {
                    backend.rope(count, heads, &ids, &cos_sin, &mut qkv)
                })
            }
        }
    }

    /// From the last activations to the next tokens.
    fn head(&mut self, count: usize) -> Result<()> {
        let backend = self.backend;
        let vocab = self.config.vocab;
        let logits = |scale| {
            let values: Vec<f32> =
                random(7, scale, count * vocab).into_iter().map(f32::from).collect();
            Logits::of(&**backend, vocab, &values)
        };
        let (tuned, untuned, mut shifted) = (logits(1.0)?, logits(1.0)?, logits(1.0)?);
        self.row("add_guidance", count, 16 * count * vocab, 0, |_| {
            backend.add_guidance(count, 1e-9, &tuned, &untuned, &mut shifted)
        })?;
        // As far apart as a model's; top-p still keeps thousands of them, which is its slow path.
        let peaked = logits(15.0)?;
        let mut drawn = self.upload(&vec![0; count])?;
        for (name, top_k, top_p) in [("sample top-k", 50, 1.0), ("sample top-p", 0, 0.9)] {
            let row = |candidate| {
                let draw = Draw { candidate, ..Draw::default() };
                SampleRow { logits: candidate, temperature: 0.7, top_k, top_p, draw }
            };
            let draws: Vec<SampleRow> = (0..count as u32).map(row).collect();
            // Of logits with maxima, top-k reads these and as many groups.
            let by_groups = vocab.div_ceil(LOGIT_GROUP) + top_k as usize * LOGIT_GROUP;
            let read = if top_k > 0 && backend.keeps_maxima() { by_groups } else { vocab };
            self.row(name, count, 4 * count * read, 0, |_| {
                backend.sample(&draws, &peaked, &mut drawn)
            })?;
        }
        let (tables, ends) = (self.upload(&vec![3; count * 64])?, self.upload(&[u32::MAX])?);
        let mut tokens = self.upload(&vec![0; count])?;
        let mut positions = self.upload(&vec![0; count])?;
        let mut slots = self.upload(&vec![0; count])?;
        let mut history = self.upload(&vec![0; count])?;
        self.row("advance", count, 24 * count, 0, |_| {
            backend.advance(Advance {
                rows: count,
                step: 0,
                drawn: &drawn,
                ends: &ends,
                tables: &tables,
                table_stride: 64,
                tokens: &mut tokens,
                positions: &mut positions,
                slots: &mut slots,
                history: &mut history,
            })
        })
    }

    /// An entry for each row: starts and list.
    fn own_entries(&self, rows: usize) -> Result<(B::Buffer<u32>, B::Buffer<u32>)> {
        let upto = |end| self.upload(&(0..end).collect::<Vec<u32>>());
        Ok((upto(rows as u32 + 1)?, upto(rows as u32)?))
    }

    /// Keys and values of `count` rows on their way into pages, and copies of so many pages.
    fn cache(&mut self, count: usize) -> Result<()> {
        let backend = self.backend;
        let Config { heads, layers, width, .. } = self.config;
        let qkv_len = count * heads.qkv_width();
        let shape = PoolShape { layers, pages: 2 * count, heads };
        let mut pool = self.numbers::<bf16>(shape.len())?;
        let qkv = self.numbers::<bf16>(qkv_len)?;
        let slots: Vec<u32> = (0..count).map(|row| (row * PAGE_LEN) as u32).collect();
        let slots = self.upload(&slots)?;
        let (starts, list) = self.own_entries(count)?;
        self.row("store_kv", count, 8 * count * heads.kv * heads.dim, 0, |turn| {
            let entries = Entries { rows: count, starts: &starts, list: &list };
            backend.store_kv(turn % layers, shape, &qkv, entries, &slots, &mut pool)
        })?;
        let weights = self.matrices(heads.qkv_width(), width)?;
        let (x, mut out) = (self.numbers::<bf16>(count * width)?, self.numbers::<bf16>(qkv_len)?);
        let bytes = 2 * (width * (heads.qkv_width() + count) + qkv_len);
        self.row("qkv", count, bytes, 2 * count * width * heads.qkv_width(), |turn| {
            backend.qkv(Qkv {
                layer: turn % layers,
                shape,
                x: &x,
                weight: &weights[turn % weights.len()],
                bias: None,
                rotary: None,
                entries: Entries { rows: count, starts: &starts, list: &list },
                slots: &slots,
                pool: &mut pool,
                out: &mut out,
            })
        })?;
        let copies: Vec<(u32, u32)> =
            (0..count as u32).map(|page| (page, page + count as u32)).collect();
        self.row("copy_pages", count, 2 * count * shape.page_bytes(), 0, |_| {
            backend.copy_pages(shape, &copies, &mut pool)
        })
    }

    /// One layer; each of `sequences` has `new` rows that end at position `end`, and all have the
    /// pages of the first `shared` positions in common. The bytes are those of distinct pages.
    fn attention(&mut self, sequences: usize, new: usize, end: usize, shared: usize) -> Result<()> {
        let (backend, heads): (_, Heads) = (self.backend, self.config.heads);
        let (stride, common) = (end.div_ceil(PAGE_LEN), shared / PAGE_LEN);
        let own = stride - common;
        let layer = PoolShape { layers: 1, pages: common + sequences * own, heads };
        let shape = PoolShape { layers: BEYOND_CACHES.div_ceil(2 * layer.len()), ..layer };
        let (pool, all) = (self.numbers::<bf16>(shape.len())?, sequences * new);
        let qkv = self.numbers::<bf16>(all * heads.qkv_width())?;
        let mut out = self.numbers::<bf16>(all * heads.query_width())?;
        let first_position = end - new;
        let segments: Vec<Segment> = (0..sequences)
            .map(|index| Segment { first_row: index * new, rows: new, first_position })
            .collect();
        let position = |row| (first_position + row % new) as u32;
        let positions = self.upload(&(0..all).map(position).collect::<Vec<_>>())?;
        let row_segments =
            self.upload(&(0..all).map(|row| (row / new) as u32).collect::<Vec<_>>())?;
        let page = |sequence: usize, index: usize| {
            (index + if index < common { 0 } else { sequence * own }) as u32
        };
        let table = |sequence| (0..stride).map(move |index| page(sequence, index));
        let tables = self.upload(&(0..sequences).flat_map(table).collect::<Vec<_>>())?;
        let distinct = shared + sequences * (end - shared);
        let bytes = distinct * heads.kv * heads.dim * 4
            + all * 2 * (heads.qkv_width() + heads.query_width());
        let seen: usize = (first_position + 1..=end).sum::<usize>() * sequences;
        let operations = 4 * seen * heads.query * heads.dim;
        let sharing = if shared > 0 { format!(", {shared} shared") } else { String::new() };
        self.row(&format!("attention to {end}{sharing}"), all, bytes, operations, |turn| {
            backend.attention(Attention {
                layer: turn % shape.layers,
                shape,
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
            })
        })
    }
}
