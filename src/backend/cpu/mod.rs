//! The CPU as a device: bf16 weights and cache, f32 sums, vectors as wide as the machine has.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
mod epilogue;
mod head;
mod isa;
mod math;
mod matmul;
mod matrix;
mod memory;
mod products;
mod rows;
mod sample;
mod simd;
mod team;
mod tiles;

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

pub use buffer::{Buffer, host_room};
pub use isa::Isa;
pub use matrix::Matrix;

use super::{
    Advance, Attention, Backend, Entries, Heads, Logits, Memory, NO_SLOT, PoolShape, SampleRow,
};
use crate::error::{Error, Result};
use crate::tensor::{Element, HostMatrix, bf16};
use buffer::{Shared, Slabs};
use epilogue::Places;
use matmul::Block;
use simd::LANES;
use team::Team;

/// Numbers below which an elementwise op stays on one thread.
const WORTH_A_THREAD: usize = 1 << 12;

/// One part in so many of the host's free memory is left to the programs that live there too.
pub const HOST_MARGIN: usize = 4;

/// This machine's processor.
pub struct CpuBackend {
    isa: Isa,
    team: Arc<Team>,
    memory: Arc<Memory>,
    slabs: Arc<Slabs>,
}

/// What a matmul does with its sums and its bias; one of [`epilogue`]'s.
type Epilogue<Y> = fn(Isa, sums: Block<'_>, bias: Option<&[f32]>, out: Places<Y>);

impl CpuBackend {
    /// The best instruction set on `threads` threads, all of them if not given.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_isa(Isa::best(), threads)
    }

    /// A certain instruction set, one of [`Isa::available`].
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Result<Self> {
        assert!(Isa::available().contains(&isa), "{isa:?} is not what this processor has");
        let all = || thread::available_parallelism().map_or(1, NonZero::get);
        let team = Team::new(threads.unwrap_or_else(all))
            .map_err(|error| Error::flag("--threads", format!("cannot be had: {error}")))?;
        let memory = Memory::of_device(host_room(), HOST_MARGIN);
        Ok(Self { isa, team: Arc::new(team), memory, slabs: Arc::default() })
    }

    /// `len` zeros in such memory as weights are in, beyond the budget: to measure it with.
    pub fn alloc_streamed<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.slabs.buffer(&Memory::new(None), len)
    }

    /// Adds up `values` with all threads, as fast as memory can be read.
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
        let x = &x[..rows * width];
        let numbers = rows * width.max(out_width);
        self.by_out_row(rows, numbers, (out, out_width), |row, out| {
            each(&x[row * width..][..width], out);
        });
    }

    /// `each(row, out[row])` for rows of `width` numbers, by all threads if it is about so many
    /// `numbers` that this is worth while.
    fn by_out_row<Y: Element>(
        &self,
        rows: usize,
        numbers: usize,
        (out, width): (&mut [Y], usize),
        each: impl Fn(usize, &mut [Y]) + Sync,
    ) {
        let out = Shared::new(&mut out[..rows * width]);
        self.team.each(rows, numbers >= WORTH_A_THREAD, |row| {
            // SAFETY: each row is one task's; `out` is borrowed until all are done.
            each(row, unsafe { out.range(row * width, width) });
        });
    }

    /// Hands each weight of the rows of `table` that `indices` name to `put` with its place in `out`.
    fn by_embedding(
        &self,
        rows: usize,
        indices: &[u32],
        table: &Matrix,
        out: &mut [f32],
        put: impl Fn(&mut f32, f32) + Copy + Sync,
    ) {
        // A row's pairs stand in cache lines of their own: so much is read.
        let numbers = rows * table.inputs * LANES;
        let indices = &indices[..rows];
        self.by_out_row(rows, numbers, (out, table.inputs), |row, out| {
            table.row(indices[row] as usize, out, put);
        });
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
        // SAFETY: the matmul writes each block once; `out` is borrowed until the end.
        let out = unsafe { Places::new(out, weight.outputs) };
        let bias = bias.map(|bias| &bias[..]);
        let epilogue = |block: Block<'_>| write(self.isa, block, bias, out);
        matmul::matmul(self, rows, x, weight, epilogue);
    }
}

impl Backend for CpuBackend {
    type Buffer<T: Element> = Buffer<T>;
    type Matrix = Matrix;

    fn describe(&self) -> String {
        let isa = self.isa.name();
        let threads = self.team.members();
        format!("cpu ({isa}, {threads} thread{})", if threads == 1 { "" } else { "s" })
    }

    fn arithmetic(&self) -> String {
        format!("cpu, {}", self.isa.name())
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The same threads: an op is done when its call returns.
    fn side(&self) -> Result<Self> {
        let Self { isa, team, memory, slabs } = self;
        let (team, memory, slabs) = (team.clone(), memory.clone(), slabs.clone());
        Ok(Self { isa: *isa, team, memory, slabs })
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

    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        Matrix::bytes(matmul::step(self.isa), rows, cols)
    }

    fn matrix(&self, matrix: HostMatrix<'_>) -> Result<Matrix> {
        Matrix::new(matmul::step(self.isa), &self.slabs, &self.memory, &matrix)
    }

    fn embed(
        &self,
        rows: usize,
        tokens: &Buffer<u32>,
        table: &Matrix,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        self.by_embedding(rows, tokens, table, out, |out, weight| *out = weight);
        Ok(())
    }

    fn embed_add(
        &self,
        rows: usize,
        positions: &Buffer<u32>,
        table: &Matrix,
        x: &mut Buffer<f32>,
    ) -> Result<()> {
        self.by_embedding(rows, positions, table, x, |x, weight| *x += weight);
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
        self.matmul_into(rows, x, weight, bias, out, epilogue::store_half);
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
        self.matmul_into(rows, x, weight, bias, residual, epilogue::add);
        Ok(())
    }

    fn matmul_gelu(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        weight: &Matrix,
        bias: Option<&Buffer<f32>>,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.matmul_into(rows, x, weight, bias, out, epilogue::store_gelu);
        Ok(())
    }

    fn matmul_gelu_erf(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        weight: &Matrix,
        bias: Option<&Buffer<f32>>,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.matmul_into(rows, x, weight, bias, out, epilogue::store_gelu_erf);
        Ok(())
    }

    fn matmul_silu_gate(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        gate: &Matrix,
        up: &Matrix,
        biases: Option<[&Buffer<f32>; 2]>,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        let (inputs, outputs) = (gate.inputs, gate.outputs);
        assert_eq!((up.inputs, up.outputs), (inputs, outputs), "gate, up: [out, in]");
        assert!(x.len() >= rows * inputs, "x: [rows, {inputs}]");
        assert!(out.len() >= rows * outputs, "out: [rows, {outputs}]");
        assert!(biases.iter().flatten().all(|bias| bias.len() == outputs), "biases: [out] each");
        // SAFETY: the matmul writes each block once; `out` is borrowed until the end.
        let out = unsafe { Places::new(out, outputs) };
        let biases = biases.map(|biases| biases.map(|bias| &bias[..]));
        matmul::matmul_pair(self, rows, x, [gate, up], |gates, block| {
            epilogue::store_silu_gate(self.isa, gates, block, biases, out);
        });
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
        let (width, numbers) = (shape.heads.qkv_width(), entries.rows * shape.heads.qkv_width());
        let pool = Shared::new(&mut pool[..shape.len()]);
        self.team.each(shape.heads.kv, numbers >= WORTH_A_THREAD, |head| {
            for (row, qkv) in qkv.chunks_exact(width).take(entries.rows).enumerate() {
                for &entry in entries.of(row) {
                    let slot = slots[entry as usize];
                    if slot != NO_SLOT {
                        // SAFETY: a slot has a place of its own for each head, and a head is one
                        // task's; `pool` is borrowed until all are done.
                        unsafe { rows::store_kv(layer, shape, head, qkv, slot as usize, pool) };
                    }
                }
            }
        });
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
        }
        let layer_len = shape.pages * shape.page_len();
        let pool = Shared::new(&mut pool[..shape.len()]);
        self.team.each(shape.layers, true, |layer| {
            // SAFETY: each layer is one task's; `pool` is borrowed until all are done.
            let pages = unsafe { pool.range(layer * layer_len, layer_len) };
            for &(from, to) in copies {
                let (from, to) = (from as usize * shape.page_len(), to as usize * shape.page_len());
                pages.copy_within(from..from + shape.page_len(), to);
            }
        });
        Ok(())
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<()> {
        attention::attention(self, args);
        Ok(())
    }

    fn logits(
        &self,
        rows: usize,
        x: &Buffer<bf16>,
        head: &Matrix,
        out: &mut Logits<Self>,
    ) -> Result<()> {
        self.matmul_into(rows, x, head, None, &mut out.values, epilogue::store);
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
        weight: f32,
        tuned: &Logits<Self>,
        untuned: &Logits<Self>,
        logits: &mut Logits<Self>,
    ) -> Result<()> {
        head::add_guidance(self, rows, weight, [tuned, untuned], logits);
        Ok(())
    }

    fn sample(
        &self,
        rows: &[SampleRow],
        logits: &Logits<Self>,
        tokens: &mut Buffer<u32>,
    ) -> Result<()> {
        sample::sample(self, rows, logits.vocab, &logits.values, tokens);
        Ok(())
    }

    fn advance(&self, args: Advance<'_, Self>) -> Result<()> {
        rows::advance(args);
        Ok(())
    }
}
