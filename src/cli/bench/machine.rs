//! What a device can do: the bandwidth of its memory and the rate of a large matmul.

use std::hint::black_box;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use super::bounds::Work;
use super::report::Row;
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{CudaBackend, Driver, Emulator};
use crate::backend::{Backend, Heads, PoolShape};
use crate::error::Result;
use crate::tensor::{HostMatrix, bf16, random};

/// For how long a measurement is repeated, in seconds; the fastest run counts, since a neighbour on
/// the machine can only slow it down.
const PATIENCE: f64 = 0.3;
/// Seconds of work that are timed together: so many that waiting for a device does not count.
const TIMED: f64 = 0.02;
/// Bytes read from the host's memory at a time: as many as the weights have, since a large cache
/// keeps part of what a small model reads again and again; within limits, for what is beyond the
/// nearer caches in any case and what is beyond all of them.
const BYTES: RangeInclusive<usize> = 256 << 20..=2 << 30;
/// Pages copied on a device: 4 MiB each, up to 1 GiB in all, far beyond any cache.
const PAGE: PoolShape =
    PoolShape { layers: 16, pages: 1, heads: Heads { query: 32, kv: 32, dim: 128 } };
/// See [`PAGE`].
const COPIES: [usize; 5] = [1, 4, 16, 64, 256];
/// Rows, inputs and outputs of the matmuls, each of them so many, until one takes [`TIMED`].
const SIDES: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// A device as something to be measured.
pub trait Measured: Backend {
    /// Bytes per second that its memory reads, or, where it cannot but copy, reads and writes, when
    /// it is about so many bytes of `weights`.
    fn bandwidth(self: &Arc<Self>, weights: usize) -> Result<Vec<f64>>;

    /// The most of its memory that this process ever had in use, in bytes, where that is known.
    fn peak_memory(&self) -> Option<f64>;
}

impl Measured for CpuBackend {
    fn bandwidth(self: &Arc<Self>, weights: usize) -> Result<Vec<f64>> {
        let bytes = weights.clamp(*BYTES.start(), *BYTES.end());
        let mut numbers = self.alloc_streamed::<f32>(bytes / size_of::<f32>())?;
        numbers.fill(1.0);
        let runs = seconds(self, || {
            black_box(self.sum(black_box(&numbers)));
            Ok(())
        })?;
        Ok(rates(size_of_val(&numbers[..]), &runs))
    }

    fn peak_memory(&self) -> Option<f64> {
        host_peak_memory()
    }
}

impl Measured for CudaBackend<Driver> {
    fn bandwidth(self: &Arc<Self>, _weights: usize) -> Result<Vec<f64>> {
        copy_bandwidth(self)
    }

    // An engine takes all that it will ever need when it is built.
    fn peak_memory(&self) -> Option<f64> {
        Some(self.memory().taken() as f64)
    }
}

impl Measured for CudaBackend<Emulator> {
    fn bandwidth(self: &Arc<Self>, _weights: usize) -> Result<Vec<f64>> {
        copy_bandwidth(self)
    }

    fn peak_memory(&self) -> Option<f64> {
        host_peak_memory()
    }
}

/// Copies pages, more and more of them until it takes a while.
fn copy_bandwidth<B: Backend>(backend: &Arc<B>) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    for count in COPIES {
        let shape = PoolShape { pages: 2 * count, ..PAGE };
        if !samples.is_empty() && !has_room(&**backend, shape.len() * size_of::<bf16>()) {
            break;
        }
        let mut pool = backend.alloc::<bf16>(shape.len())?;
        let copies: Vec<(u32, u32)> =
            (0..count as u32).map(|page| (page, page + count as u32)).collect();
        let runs = seconds(backend, || backend.copy_pages(shape, &copies, &mut pool))?;
        samples = rates(2 * count * shape.page_bytes(), &runs);
        if runs[0] > TIMED {
            break;
        }
    }
    Ok(samples)
}

/// Whether so many bytes may be taken beside the word of a [`Fence`]: a small budget is measured in
/// what there is of it.
fn has_room<B: Backend>(backend: &B, bytes: usize) -> bool {
    backend.memory().left().is_none_or(|left| bytes + Fence::<B>::BYTES <= left)
}

/// Measured rates.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Bytes of memory per second: each run's.
    bandwidth: Vec<f64>,
    /// Multiplications and additions per second of the fastest matmul: each run's.
    matmul: Vec<f64>,
}

impl Machine {
    /// Measures both rates, for models of so many bytes of `weights`, which takes a few seconds.
    pub fn measure<B: Measured>(backend: &Arc<B>, weights: usize) -> Result<Self> {
        eprintln!("bench machine: memory and matmul");
        let machine = Self { bandwidth: backend.bandwidth(weights)?, matmul: matmul(backend)? };
        forget_host_peak();
        Ok(machine)
    }

    /// Bytes of memory in a second.
    pub fn bytes_per_s(&self) -> f64 {
        best(&self.bandwidth)
    }

    /// Multiplications and additions of a large matmul in a second.
    pub fn operations_per_s(&self) -> f64 {
        best(&self.matmul)
    }

    /// The least time for some work, in seconds.
    pub fn seconds(&self, work: Work) -> f64 {
        (work.bytes / self.bytes_per_s()).max(work.operations / self.operations_per_s())
    }

    /// What limits such work: `memory` or `matmul`.
    pub fn limit(&self, work: Work) -> &'static str {
        let bytes = work.bytes / self.bytes_per_s();
        if work.operations / self.operations_per_s() > bytes { "matmul" } else { "memory" }
    }

    /// Both rates as results.
    pub fn rows(&self, bench: &str) -> Vec<Row> {
        vec![
            Row::new(bench, "memory_bytes_per_s", "B/s", self.bandwidth.clone()),
            Row::new(bench, "matmul_operations_per_s", "op/s", self.matmul.clone()),
        ]
    }

    /// The most memory in use since the machine was measured, beside what was needed, in bytes.
    pub fn memory_row<B: Measured>(&self, backend: &B, bench: &str, needed: usize) -> Option<Row> {
        let peak = backend.peak_memory()?;
        Some(Row::new(bench, "peak_memory", "B", vec![peak]).bound(needed as f64))
    }
}

/// Multiplications and additions per second of the fastest matmul of random numbers.
fn matmul<B: Backend>(backend: &Arc<B>) -> Result<Vec<f64>> {
    let mut fastest = Vec::new();
    for side in SIDES {
        if !fastest.is_empty() && !has_room(&**backend, 3 * side * side * size_of::<bf16>()) {
            break;
        }
        let numbers = |seed| random(seed, 1.0, side * side);
        let weight = backend.matrix(HostMatrix::new(side, side, numbers(1)))?;
        let mut x = backend.alloc(side * side)?;
        backend.upload(&numbers(2), &mut x)?;
        let mut out = backend.alloc::<bf16>(side * side)?;
        let runs = seconds(backend, || backend.matmul(side, &x, &weight, None, &mut out))?;
        let samples = rates(2 * side * side * side, &runs);
        if fastest.is_empty() || best(&samples) > best(&fastest) {
            fastest = samples;
        }
        if runs[0] > TIMED {
            break;
        }
    }
    Ok(fastest)
}

/// Seconds that `op` takes, in several runs, each of which waits for the device.
fn seconds<B: Backend>(backend: &Arc<B>, mut op: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let fence = Fence::new(backend)?;
    let mut run = |launches: usize| -> Result<f64> {
        let started = Instant::now();
        for _ in 0..launches {
            op()?;
        }
        fence.wait()?;
        Ok(started.elapsed().as_secs_f64() / launches as f64)
    };
    let first = run(1)?;
    let launches = (TIMED / first).clamp(1.0, 1000.0) as usize;
    let (mut runs, mut spent) = (Vec::new(), 0.0);
    while spent < PATIENCE {
        let seconds = run(launches)?;
        spent += seconds * launches as f64;
        runs.push(seconds);
    }
    Ok(runs)
}

fn rates(work: usize, seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|seconds| work as f64 / seconds).collect()
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

/// Waits for a device.
pub struct Fence<B: Backend> {
    backend: Arc<B>,
    word: B::Buffer<u32>,
}

impl<B: Backend> Fence<B> {
    /// Bytes that it takes.
    pub const BYTES: usize = size_of::<u32>();

    /// A fence on `backend`.
    pub fn new(backend: &Arc<B>) -> Result<Self> {
        Ok(Self { backend: backend.clone(), word: backend.alloc(1)? })
    }

    /// Returns when all that was asked of the device has happened.
    pub fn wait(&self) -> Result<()> {
        self.backend.download(&self.word, &mut [0])
    }
}

/// The most of the host's memory that the process ever had in use, in bytes, where the system says
/// so (Linux).
fn host_peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

/// What was in use so far does not count, where the system can forget it: what the machine was
/// measured with is no part of what is measured.
fn forget_host_peak() {
    // See proc(5); without it the peak is that of the whole run.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
