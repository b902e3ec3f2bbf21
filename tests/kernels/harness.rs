//! Random inputs, every path of the CPU, and comparison with the oracle.

use trimtab::backend::cpu::{CpuBackend, Isa};
use trimtab::backend::cuda::{CudaBackend, Driver, Emulator};
use trimtab::backend::{Backend, LOGIT_GROUP, Logits};
use trimtab::tensor::{Element, HostMatrix, bf16};

pub use crate::oracle::Oracle;

/// One unit in the last of bf16's 8 bits: both numbers are rounded to bf16 before they are
/// compared, and where the exact value lies between two, they may fall to different sides.
pub const BF16: f64 = 1.0 / 128.0;

/// Row counts that fill, straddle and miss every tile.
pub const ROWS: [usize; 8] = [1, 2, 5, 6, 7, 17, 33, 15];

/// Repeatable random numbers (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Between −1 and 1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn numbers(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.unit() * scale).collect()
    }

    pub fn halves(&mut self, len: usize, scale: f32) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f32(self.unit() * scale)).collect()
    }

    pub fn indices(&mut self, len: usize, bound: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(bound) as u32).collect()
    }

    /// 0..len in any order.
    pub fn shuffled(&mut self, len: usize) -> Vec<u32> {
        let mut list: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            list.swap(i, self.below(i + 1));
        }
        list
    }
}

/// Runs a block with every backend that is tested: the CPU in all its ways, the kernels on the
/// emulator in two orders of threads, with Hopper's kernels and with those of other GPUs, and on the GPU where `TRIMTAB_TEST_DEVICE` is
/// `cuda`; on that alone where `TRIMTAB_TEST_SANITIZED` is set too, since nobody checks the others then. The
/// block names what it is given: `|name, backend| { … }`.
macro_rules! on_every_backend {
    (|$name:ident, $backend:ident| $body:block) => {{
        for ($name, $backend) in crate::harness::paths() $body
        for ($name, $backend) in crate::harness::emulators() $body
        for ($name, $backend) in crate::harness::gpus() $body
    }};
}
pub(crate) use on_every_backend;

fn sanitized() -> bool {
    std::env::var_os("TRIMTAB_TEST_SANITIZED").is_some()
}

/// The kernels on the emulator.
pub fn emulators() -> Vec<(String, CudaBackend<Emulator>)> {
    if sanitized() {
        return Vec::new();
    }
    let hopper = ("emulator of Hopper".to_owned(), CudaBackend::emulated(1).unwrap());
    let other = CudaBackend::new(Emulator::new(2).without_wide()).unwrap();
    vec![hopper, ("emulator of other GPUs".to_owned(), other)]
}

/// The kernels on a GPU, if one is to be tested.
pub fn gpus() -> Vec<(String, CudaBackend<Driver>)> {
    let wanted = std::env::var_os("TRIMTAB_TEST_DEVICE").is_some_and(|device| device == "cuda");
    wanted.then(|| ("cuda".to_owned(), CudaBackend::open().unwrap())).into_iter().collect()
}

/// The CPU in every way that this machine allows.
pub fn paths() -> Vec<(String, CpuBackend)> {
    let mut list = Vec::new();
    for isa in Isa::available().into_iter().filter(|_| !sanitized()) {
        for threads in [1, 2] {
            let backend = CpuBackend::with_isa(isa, Some(threads)).unwrap();
            list.push((format!("{isa:?}, {threads} threads"), backend));
        }
    }
    list
}

/// The best path on one thread.
pub fn cpu() -> CpuBackend {
    CpuBackend::new(Some(1)).unwrap()
}

pub fn upload<B: Backend, T: Element>(backend: &B, data: &[T]) -> B::Buffer<T> {
    let mut buffer = backend.alloc(data.len()).unwrap();
    backend.upload(data, &mut buffer).unwrap();
    buffer
}

pub fn download<B: Backend, T: Element>(backend: &B, buffer: &B::Buffer<T>) -> Vec<T> {
    let mut data = vec![T::default(); backend.len(buffer)];
    backend.download(buffer, &mut data).unwrap();
    data
}

/// Logits as the host has them, with the maxima that the backend keeps.
pub fn logits<B: Backend>(backend: &B, vocab: usize, values: &[f32]) -> Logits<B> {
    Logits::of(backend, vocab, values).unwrap()
}

/// Every maximum is exactly that of its group, and NaN where one of the group is.
pub fn assert_maxima<B: Backend>(what: &str, backend: &B, logits: &Logits<B>) {
    let values: Vec<f32> = download(backend, &logits.values);
    let maxima: Vec<f32> = download(backend, &logits.maxima);
    if !backend.keeps_maxima() {
        return assert!(maxima.is_empty(), "{what}");
    }
    let groups = values.chunks(logits.vocab).flat_map(|row| row.chunks(LOGIT_GROUP));
    assert_eq!(maxima.len(), groups.clone().count(), "{what}");
    for (i, (group, maximum)) in groups.zip(maxima).enumerate() {
        let largest = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let right = if group.iter().any(|logit| logit.is_nan()) {
            maximum.is_nan()
        } else {
            maximum == largest
        };
        assert!(right, "{what}: maximum {i} is {maximum} of {group:?}");
    }
}

/// An entry for each row, or some for each, in any order: starts and list.
pub struct Listed {
    pub starts: Vec<u32>,
    pub list: Vec<u32>,
}

impl Listed {
    pub fn own(rows: usize) -> Self {
        Self { starts: (0..=rows as u32).collect(), list: (0..rows as u32).collect() }
    }

    /// One to four for each row.
    pub fn random(rows: usize, random: &mut Random) -> Self {
        let mut starts = vec![0];
        for row in 0..rows {
            starts.push(starts[row] + 1 + random.below(4) as u32);
        }
        let list = random.shuffled(starts[rows] as usize);
        Self { starts, list }
    }

    pub fn upload<B: Backend>(&self, backend: &B) -> [B::Buffer<u32>; 2] {
        [upload(backend, &self.starts), upload(backend, &self.list)]
    }
}

pub fn matrix<B: Backend>(backend: &B, rows: usize, cols: usize, data: &[bf16]) -> B::Matrix {
    backend.matrix(HostMatrix::new(rows, cols, data)).unwrap()
}

/// Every number within `relative` of its own size plus `absolute`.
pub fn assert_close<T: Element>(
    what: &str,
    ours: &[T],
    oracle: &[T],
    relative: f64,
    absolute: f64,
) {
    assert_eq!(ours.len(), oracle.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(oracle).enumerate() {
        let (a, b) = (a.to_f64(), b.to_f64());
        let bound = relative * b.abs() + absolute;
        assert!((a - b).abs() <= bound, "{what}: [{i}] is {a}, the oracle says {b} ± {bound:e}");
    }
}

/// Error of an f32 sum of `terms` products below `size` each: one rounding of at most
/// 2^-24 · (running sum) per term, added up, doubled for products that are rounded too.
pub fn sum_error(terms: usize, size: f64) -> f64 {
    2.0 * terms as f64 * terms as f64 * size * 2f64.powi(-24)
}
