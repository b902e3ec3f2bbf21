//! The CPU as a device: bf16 weights and cache, f32 sums, vectors as wide as the machine has.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
mod head;
mod isa;
mod math;
mod matmul;
mod matrix;
mod memory;
mod rows;
mod sample;
mod simd;
mod tiles;

use std::sync::Arc;

use rayon::prelude::*;

pub use buffer::{Buffer, host_free_bytes};
pub use isa::Isa;
pub use matrix::Matrix;

use super::{Advance, Attention, Backend, Entries, Heads, Memory, NO_SLOT, PoolShape, SampleRow};
use crate::error::{Error, Result};
use crate::tensor::{Element, HostMatrix, bf16};
use buffer::Shared;

/// Numbers below which an elementwise op stays on one thread.
const WORTH_A_THREAD: usize = 1 << 15;

/// One part in so many of the host's free memory is left to the programs that live there too.
pub const HOST_MARGIN: usize = 4;

/// This machine's processor.
pub struct CpuBackend {
    isa: Isa,
    pool: Arc<rayon::ThreadPool>,
    memory: Arc<Memory>,
}

/// What a matmul does with the sums of one row: adds the bias and puts them into their place.
type Epilogue<Y> = fn(Isa, sums: &[f32], bias: Option<&[f32]>, out: &mut [Y]);

impl CpuBackend {
    /// The best instruction set on `threads` threads, all of them if not given.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_isa(Isa::best(), threads)
    }

    /// A certain instruction set, one of [`Isa::available`].
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Result<Self> {
        assert!(Isa::available().contains(&isa), "{isa:?} is not what this processor has");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|error| Error::flag("--threads", format!("cannot be had: {error}")))?;
        let memory = Memory::of_free(host_free_bytes(), HOST_MARGIN);
        Ok(Self { isa, pool: Arc::new(pool), memory })
    }

    /// Runs `f` on one of the backend's own threads, from which ops start at once instead of
    /// waking another thread first.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Adds up `values` with all threads, in no certain order: as fast as memory can be read.
    pub fn sum(&self, values: &[f32]) -> f32 {
        memory::sum(self, values)
    }

    /// `each(x[row], out[row])` for rows of `width` and `out_width` numbers.
    fn by_row<X: Element, Y: Element>(
        &self,
        rows: usize,
        (x, width): (&[X], usize),
        (out, out_width): (&mut [Y], usize),
        each: impl Fn(&[X], &mut [Y]) + Sync,
    ) {
        let (x, out) = (&x[..rows * width], &mut out[..rows * out_width]);
        let each = |(x, out)| each(x, out);
        if rows * width.max(out_width) < WORTH_A_THREAD {
            x.chunks(width).zip(out.chunks_mut(out_width)).for_each(each);
        } else {
            let rows = x.par_chunks(width).zip(out.par_chunks_mut(out_width));
            self.pool.install(|| rows.for_each(each));
        }
    }

    /// All sums, each handed with its bias and its place in `out` to `write`.
    fn matmul_into<Y: Element>(
        &self,
        rows: usize,
        x: &[bf16],
        weight: &Matrix,
        bias: Option<&Buffer<f32>>,
        out: &mut [Y],
        write: Epilogue<Y>,
    ) {
        assert!(x.len() >= rows * weight.inputs, "x: [rows, {}]", weight.inputs);
        assert!(out.len() >= rows * weight.outputs, "out: [rows, {}]", weight.outputs);
        assert!(bias.is_none_or(|bias| bias.len() == weight.outputs), "bias: [out]");
        let out = Shared::new(out);
        let epilogue = |row: usize, output: usize, sums: &[f32]| {
            // SAFETY: the matmul writes each row and output once; `out` is borrowed until the end.
            let out = unsafe { out.range(row * weight.outputs + output, sums.len()) };
            write(self.isa, sums, bias.map(|bias| &bias[output..]), out);
        };
        self.pool.install(|| matmul::matmul(self.isa, rows, x, weight, epilogue));
    }
}

impl Backend for CpuBackend {
    type Buffer<T: Element> = Buffer<T>;
    type Matrix = Matrix;

    fn describe(&self) -> String {
        let isa = match self.isa {
            Isa::PortableTiles => "portable tiles",
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Bf16 => "AVX-512 BF16",
            Isa::Amx => "AMX",
        };
        let threads = self.pool.current_num_threads();
        format!("cpu ({isa}, {threads} thread{})", if threads == 1 { "" } else { "s" })
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The same threads: an op is done when its call returns.
    fn side(&self) -> Result<Self> {
        Ok(Self { isa: self.isa, pool: self.pool.clone(), memory: self.memory.clone() })
    }

    fn after(&self, _other: &Self) -> Result<()> {
        Ok(())
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::new(&self.memory, len)
    }

    fn len<T: Element>(&self, buffer: &Buffer<T>) -> usize {
        buffer.len()
    }

    fn upload<T: Element>(&self, source: &[T], target: &mut Buffer<T>) -> Result<()> {
        target[..source.len()].copy_from_slice(source);
        Ok(())
    }

    fn download<T: Element>(&self, source: &Buffer<T>, target: &mut [T]) -> Result<()> {
        target.copy_from_slice(&source[..target.len()]);
        Ok(())
    }

    fn matrix(&self, matrix: HostMatrix<'_>) -> Result<Matrix> {
        Matrix::new(&self.memory, &matrix)
    }

    fn embed(
        &self,
        rows: usize,
        tokens: &Buffer<u32>,
        table: &Matrix,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        rows::embed(&tokens[..rows], table, &mut out[..rows * table.inputs]);
        Ok(())
    }

    fn embed_add(
        &self,
        rows: usize,
        positions: &Buffer<u32>,
        table: &Matrix,
        x: &mut Buffer<f32>,
    ) -> Result<()> {
        rows::embed_add(&positions[..rows], table, &mut x[..rows * table.inputs]);
        Ok(())
    }

    fn rms_norm(
        &self,
        rows: usize,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        let width = weight.len();
        self.by_row(rows, (x, width), (out, width), |x, out| {
            rows::rms_norm(self.isa, x, weight, eps, out);
        });
        Ok(())
    }

    fn layer_norm(
        &self,
        rows: usize,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        bias: &Buffer<f32>,
        eps: f32,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        let width = weight.len();
        assert_eq!(bias.len(), width, "weight and bias: [width]");
        self.by_row(rows, (x, width), (out, width), |x, out| {
            rows::layer_norm(self.isa, x, weight, bias, eps, out);
        });
        Ok(())
    }

    fn matmul(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        weight: &Matrix,
        bias: Option<&Buffer<f32>>,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.matmul_into(rows, x, weight, bias, out, rows::store_half);
        Ok(())
    }

    fn matmul_add(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        weight: &Matrix,
        bias: Option<&Buffer<f32>>,
        residual: &mut Buffer<f32>,
    ) -> Result<()> {
        self.matmul_into(rows, x, weight, bias, residual, rows::add);
        Ok(())
    }

    fn rope(
        &self,
        rows: usize,
        heads: Heads,
        positions: &Buffer<u32>,
        cos_sin: &Buffer<f32>,
        qkv: &mut Buffer<bf16>,
    ) -> Result<()> {
        let width = heads.qkv_width();
        self.by_row(rows, (&positions[..], 1), (qkv, width), |position, qkv| {
            let cos_sin = &cos_sin[position[0] as usize * heads.dim..][..heads.dim];
            rows::rope(self.isa, heads, cos_sin, qkv);
        });
        Ok(())
    }

    fn store_kv(
        &self,
        layer: usize,
        shape: PoolShape,
        qkv: &Buffer<bf16>,
        entries: Entries<'_, Self>,
        slots: &Buffer<u32>,
        pool: &mut Buffer<bf16>,
    ) -> Result<()> {
        for (row, qkv) in qkv.chunks_exact(shape.heads.qkv_width()).take(entries.rows).enumerate() {
            for &entry in entries.of(row) {
                let slot = slots[entry as usize];
                if slot != NO_SLOT {
                    rows::store_kv(layer, shape, qkv, slot as usize, pool);
                }
            }
        }
        Ok(())
    }

    fn copy_pages(
        &self,
        shape: PoolShape,
        copies: &[(u32, u32)],
        pool: &mut Buffer<bf16>,
    ) -> Result<()> {
        for &(from, to) in copies {
            assert!(
                (from.max(to) as usize) < shape.pages,
                "page {from} or {to} of {}",
                shape.pages
            );
            rows::copy_page(shape, from as usize, to as usize, pool);
        }
        Ok(())
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<()> {
        attention::attention(self, args);
        Ok(())
    }

    fn silu_gate(
        &self,
        rows: usize,
        width: usize,
        gate_up: &Buffer<bf16>,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.by_row(rows, (gate_up, 2 * width), (out, width), |gate_up, out| {
            rows::silu_gate(self.isa, gate_up, out);
        });
        Ok(())
    }

    fn gelu(&self, rows: usize, width: usize, x: &mut Buffer<bf16>) -> Result<()> {
        let rows = &mut x[..rows * width];
        if rows.len() < WORTH_A_THREAD {
            rows::gelu(self.isa, rows);
        } else {
            let chunks = rows.par_chunks_mut(width);
            self.pool.install(|| chunks.for_each(|row| rows::gelu(self.isa, row)));
        }
        Ok(())
    }

    fn logits(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        head: &Matrix,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        self.matmul_into(rows, x, head, None, out, |_, sums, _, out| out.copy_from_slice(sums));
        Ok(())
    }

    fn logprobs(
        &self,
        x: &Buffer<bf16>,
        head: &Matrix,
        entries: Entries<'_, Self>,
        targets: &Buffer<u32>,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        head::logprobs(self, x, head, entries, targets, out);
        Ok(())
    }

    fn add_guidance(
        &self,
        rows: usize,
        vocab: usize,
        weight: f32,
        tuned: &Buffer<f32>,
        untuned: &Buffer<f32>,
        logits: &mut Buffer<f32>,
    ) -> Result<()> {
        let len = rows * vocab;
        head::add_guidance(self, vocab, weight, &tuned[..len], &untuned[..len], &mut logits[..len]);
        Ok(())
    }

    fn sample(
        &self,
        rows: &[SampleRow],
        vocab: usize,
        logits: &Buffer<f32>,
        tokens: &mut Buffer<u32>,
    ) -> Result<()> {
        sample::sample(self, rows, vocab, logits, tokens);
        Ok(())
    }

    fn advance(&self, args: Advance<'_, Self>) -> Result<()> {
        rows::advance(args);
        Ok(())
    }
}
