//! Where to compute, and the one match on the backend in the whole program.

use std::error::Error as _;
use std::sync::Arc;

use clap::ValueEnum;

use super::Done;
use super::bench::Measured;
use super::memory::{Bytes, readable};
use super::stdout::outln;
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{self, CudaBackend};
use crate::error::{Error, Result};
use crate::server::say;

/// More threads than any machine has cores.
const MAX_THREADS: usize = 4096;

/// `--device`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The first GPU if there is one that works, else the CPU.
    Auto,
    /// The processor.
    Cpu,
    /// The first GPU.
    Cuda,
    /// The GPU's kernels on the CPU: slow, for the curious.
    Emulator,
}

/// What the device is and how much it may take.
#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto", env = "TRIMTAB_DEVICE")]
    pub device: Device,
    /// Threads of the CPU [default: all]
    #[arg(long)]
    pub threads: Option<usize>,
    /// All memory of the device that may be taken, for weights, scratch memory, keys and values, such
    /// as 800M or 40G [default: what is free, less a twentieth on a GPU and a quarter elsewhere]
    #[arg(long, value_name = "BYTES", env = "TRIMTAB_DEVICE_MEMORY")]
    pub device_memory: Option<Bytes>,
    /// Of that, memory for keys and values of all models together
    /// [default: what weights and scratch memory leave, or less if that is enough]
    #[arg(long, value_name = "BYTES")]
    pub kv_memory: Option<Bytes>,
}

/// What a command does once there is a device.
pub(super) trait Job {
    /// What comes of it.
    type Output;

    /// Does it on `backend`.
    fn run<B: Measured>(self, backend: &Arc<B>) -> Result<Self::Output>;
}

impl DeviceArgs {
    /// Opens the device and runs `job` on it.
    pub(super) fn run<J: Job>(&self, job: J) -> Result<J::Output> {
        self.check()?;
        match self.device {
            Device::Cpu => self.on_cpu(job),
            Device::Cuda => self.on(CudaBackend::open()?, job),
            Device::Emulator => self.on(CudaBackend::emulated(1)?, job),
            Device::Auto => match CudaBackend::open() {
                Ok(gpu) => self.on(gpu, job),
                Err(error) => {
                    // Where there is no GPU, nobody expects one.
                    if cuda::gpus().is_ok_and(|gpus| !gpus.is_empty()) {
                        say(format_args!("computing on the CPU: {error}"));
                    }
                    self.on_cpu(job)
                }
            },
        }
    }

    /// Runs `job` within the budget.
    fn on<B: Measured, J: Job>(&self, backend: B, job: J) -> Result<J::Output> {
        self.limit(&backend)?;
        job.run(&Arc::new(backend))
    }

    fn limit<B: Backend>(&self, backend: &B) -> Result<()> {
        self.device_memory.map_or(Ok(()), |bytes| backend.memory().limit_to(bytes.0))
    }

    fn check(&self) -> Result<()> {
        if self.threads.is_some_and(|threads| !(1..=MAX_THREADS).contains(&threads)) {
            let reason = format!("must be at least 1 and at most {MAX_THREADS}");
            return Err(Error::flag("--threads", reason));
        }
        // For what is no op: reading texts, laying out weights. A process has one such pool, and the first
        // who asks decides; 0 is as many as there are processors.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads.unwrap_or(0));
        match pool.build_global() {
            // Only a refusal of the system has a cause.
            Err(error) if error.source().is_some() => {
                let reason = format!(
                    "asks for threads, which the system refuses: {error}; ask for fewer, or raise its limit of processes"
                );
                Err(Error::flag("--threads", reason))
            }
            _ => Ok(()),
        }
    }

    fn on_cpu<J: Job>(&self, job: J) -> Result<J::Output> {
        let cpu = Arc::new(CpuBackend::new(self.threads)?);
        self.limit(&*cpu)?;
        job.run(&cpu)
    }
}

/// `trimtab devices`: what there is to compute on, and why not more.
pub fn list() -> Result<Done> {
    let cpu = CpuBackend::new(None)?;
    outln!("cpu       {}", cpu.describe())?;
    outln!("          {}", budget(&cpu))?;
    let gpus = cuda::gpus();
    for gpu in gpus.as_deref().unwrap_or_default() {
        let gib = gpu.memory_bytes as f64 / f64::from(1 << 30);
        let (major, minor) = gpu.capability;
        outln!("cuda      {}: {}, {gib:.0} GiB, sm_{major}{minor}", gpu.ordinal, gpu.name)?;
    }
    match gpus.map(|gpus| gpus.len()) {
        Ok(0) => outln!("cuda      none: the driver knows of no GPU")?,
        Ok(_) => match CudaBackend::open() {
            Ok(gpu) => outln!("          {}", budget(&gpu))?,
            Err(error) if cuda::missing_kernels().is_none() => outln!("          {error}")?,
            Err(_) => {}
        },
        Err(error) => outln!("cuda      none: {error}")?,
    }
    if let Some(reason) = cuda::missing_kernels() {
        outln!("          {reason}")?;
    }
    outln!("emulator  the GPU's kernels on the CPU, for the curious")?;
    let auto = if CudaBackend::open().is_ok() { "cuda" } else { "cpu" };
    outln!("auto      {auto}")?;
    Ok(Done::Well)
}

/// What may be taken where nobody says otherwise.
fn budget<B: Backend>(backend: &B) -> String {
    match backend.memory().limit() {
        Some(limit) => format!("--device-memory {limit} by default ({})", readable(limit)),
        None => "--device-memory without a limit: nobody knows what is free".into(),
    }
}
