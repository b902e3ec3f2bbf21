//! What this machine can do: the bandwidth of memory and the rate of a large matmul.

use std::hint::black_box;
use std::time::Instant;

use super::bounds::Work;
use super::report::Row;
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::error::Result;
use crate::tensor::{HostMatrix, bf16};

/// Numbers read from memory at a time: 256 MiB, far beyond any cache.
const NUMBERS: usize = 1 << 26;
/// For how long passes are repeated, in seconds; the fastest counts, since a neighbour on the
/// machine can only slow them down.
const PATIENCE: f64 = 0.3;
/// Rows, inputs and outputs of matmuls, the fastest of which counts.
const MATMULS: [(usize, usize, usize); 3] = [(96, 768, 3072), (384, 768, 3072), (512, 2048, 2048)];

/// Measured rates.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Bytes that all threads together read from memory in a second.
    pub bytes_per_s: f64,
    /// Multiplications and additions of the fastest matmul in a second.
    pub operations_per_s: f64,
}

impl Machine {
    pub fn measure(cpu: &CpuBackend) -> Result<Self> {
        eprintln!("bench machine: memory and matmul");
        let numbers = vec![1.0f32; NUMBERS];
        let read = fastest(|| {
            black_box(cpu.sum(black_box(&numbers)));
            Ok(())
        })?;
        let mut operations_per_s = 0.0_f64;
        for (rows, inputs, outputs) in MATMULS {
            let data: Vec<bf16> =
                (0..inputs * outputs).map(|i| bf16::from_f32((i % 251) as f32 / 125.0)).collect();
            let weight = cpu.matrix(HostMatrix::new(outputs, inputs, data))?;
            let mut x = cpu.alloc(rows * inputs)?;
            cpu.upload(&vec![bf16::ONE; rows * inputs], &mut x)?;
            let mut out = cpu.alloc::<bf16>(rows * outputs)?;
            let seconds = fastest(|| cpu.matmul(rows, &x, &weight, None, &mut out))?;
            operations_per_s = operations_per_s.max((2 * rows * inputs * outputs) as f64 / seconds);
        }
        Ok(Self { bytes_per_s: (4 * NUMBERS) as f64 / read, operations_per_s })
    }

    /// The least time for some work, in seconds.
    pub fn seconds(&self, work: Work) -> f64 {
        (work.bytes / self.bytes_per_s).max(work.operations / self.operations_per_s)
    }

    /// Both rates as results.
    pub fn rows(&self, bench: &'static str) -> Vec<Row> {
        vec![
            Row::new(bench, "memory_bytes_per_s", "B/s", vec![self.bytes_per_s]),
            Row::new(bench, "matmul_operations_per_s", "op/s", vec![self.operations_per_s]),
        ]
    }
}

fn fastest(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let (mut least, mut spent) = (f64::INFINITY, 0.0);
    while spent < PATIENCE {
        let started = Instant::now();
        run()?;
        let seconds = started.elapsed().as_secs_f64();
        least = least.min(seconds);
        spent += seconds;
    }
    Ok(least)
}

/// The most memory that the process ever had in use, in bytes, where the system says so (Linux).
pub fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}
