//! GPUs as a backend: every op is one of the kernels in kernels/, launched with shapes that are
//! checked here. Runs on a real GPU ([`Driver`]) or on the emulator ([`Emulator`]); what differs
//! is behind [`Device`].
//!
//! All ops of a backend go to one queue of the device, in order; only `download` waits for it.

mod add_guidance;
mod advance;
mod attention;
mod buffer;
mod copy_pages;
mod device;
mod driver;
mod emulator;
mod gpus;
mod graph;
mod lazy;
#[rustfmt::skip]
mod params;
mod product;
mod qkv;
mod queue;
mod replay;
mod sample;
mod tile_map;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use buffer::{Buffer, Matrix};
pub use device::{Device, KERNELS, Kernel, Launch, TileShape};
pub use driver::{Driver, missing_kernels};
pub use emulator::Emulator;
pub use gpus::{Gpu, gpus};
use queue::Queue;
use replay::Params;
pub use replay::{Launcher, Step};

use super::{
    Advance, Attention, Backend, Entries, Heads, Logits, Memory, PoolShape, Qkv, SampleRow,
};
use crate::error::Result;
use crate::tensor::{Element, HostMatrix, bf16};
use params::*;
use product::Product;

/// Numbers that kernels of one op hand to one another.
const WORKSPACE_LEN: usize = 1 << 22;

/// A whole chunk of usual length without waiting for the host.
const STEPS_PER_LOOK: usize = 32;

const _: () = assert!(params::NO_SLOT == super::NO_SLOT);
const _: () = assert!(params::LOGIT_GROUP as usize == super::LOGIT_GROUP);

/// Threads of a block in kernels that walk over rows; `THREADS` in kernels/common.cuh.
const THREADS: u32 = 256;

/// A GPU, or what stands in for one.
pub struct CudaBackend<D: Device> {
    queue: Arc<Queue<D>>,
    memory: Arc<Memory>,
    /// `[WORKSPACE_LEN]`; locked while kernels that use it are launched.
    workspace: Mutex<Buffer<D, f32>>,
}

impl CudaBackend<Driver> {
    /// The first GPU.
    pub fn open() -> Result<Self> {
        Self::new(Driver::open()?)
    }
}

impl CudaBackend<Emulator> {
    /// The kernels on the CPU, threads in an order drawn from `seed`.
    pub fn emulated(seed: u64) -> Result<Self> {
        Self::new(Emulator::new(seed))
    }
}

impl<D: Device> CudaBackend<D> {
    /// A backend on this queue of a device.
    pub fn new(device: D) -> Result<Self> {
        let memory = Memory::of_device(device.room(), D::MARGIN);
        Self::within(memory, Queue::new(device))
    }

    fn within(memory: Arc<Memory>, queue: Queue<D>) -> Result<Self> {
        let queue = Arc::new(queue);
        let workspace = Mutex::new(Buffer::new(&queue, &memory, WORKSPACE_LEN)?);
        Ok(Self { queue, memory, workspace })
    }

    /// The device that the kernels run on.
    pub fn device(&self) -> &D {
        self.queue.device()
    }

    /// Steps that were launched as one so far, on all queues of the device.
    pub fn graphs_started(&self) -> u64 {
        self.queue.graphs_started()
    }

    /// Kernels launched so far, by themselves or in graphs, on all queues of the device.
    pub fn launches(&self) -> u64 {
        self.queue.launches()
    }

    fn workspace(&self) -> MutexGuard<'_, Buffer<D, f32>> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches a kernel over a grid none of whose sides is 0, or nothing.
    ///
    /// # Safety
    /// `P` must be the kernel's own struct, and its addresses valid for these shapes.
    unsafe fn launch<P: Params>(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let grid = grid.map(|side| u32::try_from(side).expect("a grid fits in u32"));
        let early = self.device().starts_early(kernel);
        let step = Step::new(Launch { kernel, early, grid, threads, shared_bytes }, params);
        // SAFETY: the caller vouches for it.
        unsafe { self.queue.launch(step) }
    }

    /// Launches one block per row of `width` numbers, of at most `threads`, with memory for one sum per
    /// warp. The block's size, and so the order of its sums, depends on the width alone.
    ///
    /// # Safety
    /// As [`CudaBackend::launch`].
    unsafe fn by_row<P: Params>(
        &self,
        kernel: &'static str,
        rows: usize,
        width: usize,
        threads: u32,
        params: &P,
    ) -> Result<()> {
        let threads = count(width.next_multiple_of(32).clamp(32, threads as usize));
        let shared_bytes = threads as usize / 32 * size_of::<f32>();
        // SAFETY: the caller vouches for it.
        unsafe { self.launch(kernel, [rows, 1, 1], threads, shared_bytes, params) }
    }
}

impl<D: Device> Backend for CudaBackend<D> {
    type Buffer<T: Element> = Buffer<D, T>;
    type Matrix = Matrix<D>;

    fn describe(&self) -> String {
        self.device().describe()
    }

    fn arithmetic(&self) -> String {
        self.device().arithmetic()
    }

    fn check_heads(&self, heads: Heads) -> Result<()> {
        attention::check_heads(self, heads)
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn steps_per_look(&self) -> usize {
        STEPS_PER_LOOK
    }

    fn keeps_maxima(&self) -> bool {
        true
    }

    fn side(&self) -> Result<Self> {
        Self::within(self.memory.clone(), self.queue.side()?)
    }

    fn side_bytes(&self) -> usize {
        WORKSPACE_LEN * size_of::<f32>()
    }

    fn after(&self, other: &Self) -> Result<()> {
        self.queue.after(&other.queue)
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<D, T>> {
        Buffer::new(&self.queue, &self.memory, len)
    }

    fn len<T: Element>(&self, buffer: &Buffer<D, T>) -> usize {
        buffer.len
    }

    fn upload<T: Element>(&self, source: &[T], target: &mut Buffer<D, T>) -> Result<()> {
        assert!(source.len() <= target.len, "{} elements into {}", source.len(), target.len);
        // SAFETY: elements are plain numbers without padding; the target is large enough.
        unsafe {
            let bytes = std::slice::from_raw_parts(source.as_ptr().cast(), size_of_val(source));
            self.queue.upload(bytes, target.address)
        }
    }

    fn download<T: Element>(&self, source: &Buffer<D, T>, target: &mut [T]) -> Result<()> {
        assert!(target.len() <= source.len, "{} elements from {}", target.len(), source.len);
        // SAFETY: elements are plain numbers, any bytes of which are valid; the source is large
        // enough.
        unsafe {
            let len = size_of_val(target);
            let bytes = std::slice::from_raw_parts_mut(target.as_mut_ptr().cast(), len);
            self.queue.download(source.address, bytes)
        }
    }

    fn matrix(&self, matrix: HostMatrix<'_>) -> Result<Matrix<D>> {
        let mut data = self.alloc(matrix.data.len())?;
        self.upload(&matrix.data, &mut data)?;
        Ok(Matrix { data, outputs: matrix.rows, inputs: matrix.cols })
    }

    fn embed(
        &self,
        rows: usize,
        tokens: &Buffer<D, u32>,
        table: &Matrix<D>,
        out: &mut Buffer<D, f32>,
    ) -> Result<()> {
        assert!(tokens.len >= rows && out.len >= rows * table.inputs, "tokens, out: [rows, ..]");
        let params = EmbedParams {
            tokens: tokens.as_ptr(),
            table: table.data.as_ptr(),
            out: out.as_mut_ptr(),
            width: count(table.inputs),
        };
        // SAFETY: the kernel's struct, shapes checked; token ids are the engine's to keep in range.
        unsafe { self.by_row("embed", rows, table.inputs, THREADS, &params) }
    }

    fn embed_add(
        &self,
        rows: usize,
        positions: &Buffer<D, u32>,
        table: &Matrix<D>,
        x: &mut Buffer<D, f32>,
    ) -> Result<()> {
        assert!(positions.len >= rows && x.len >= rows * table.inputs, "positions, x: [rows, ..]");
        let params = EmbedAddParams {
            positions: positions.as_ptr(),
            table: table.data.as_ptr(),
            x: x.as_mut_ptr(),
            width: count(table.inputs),
        };
        // SAFETY: as in `embed`.
        unsafe { self.by_row("embed_add", rows, table.inputs, THREADS, &params) }
    }

    fn rms_norm(
        &self,
        rows: usize,
        x: &Buffer<D, f32>,
        weight: &Buffer<D, f32>,
        eps: f32,
        out: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        let width = weight.len;
        assert!(x.len >= rows * width && out.len >= rows * width, "x, out: [rows, {width}]");
        let params = RmsNormParams {
            x: x.as_ptr(),
            weight: weight.as_ptr(),
            out: out.as_mut_ptr(),
            width: count(width),
            eps,
        };
        // SAFETY: the kernel's struct, shapes checked.
        unsafe { self.by_row("rms_norm", rows, width, THREADS, &params) }
    }

    fn layer_norm(
        &self,
        rows: usize,
        x: &Buffer<D, f32>,
        weight: &Buffer<D, f32>,
        bias: &Buffer<D, f32>,
        eps: f32,
        out: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        let width = weight.len;
        assert_eq!(bias.len, width, "weight and bias: [width]");
        assert!(x.len >= rows * width && out.len >= rows * width, "x, out: [rows, {width}]");
        let params = LayerNormParams {
            x: x.as_ptr(),
            weight: weight.as_ptr(),
            bias: bias.as_ptr(),
            out: out.as_mut_ptr(),
            width: count(width),
            eps,
        };
        // SAFETY: the kernel's struct, shapes checked.
        unsafe { self.by_row("layer_norm", rows, width, THREADS, &params) }
    }

    fn matmul(
        &self,
        rows: usize,
        x: &Buffer<D, bf16>,
        weight: &Matrix<D>,
        bias: Option<&Buffer<D, f32>>,
        out: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        product::matmul(self, product::MATMUL, rows, x, weight, bias, out)
    }

    fn matmul_gelu(
        &self,
        rows: usize,
        x: &Buffer<D, bf16>,
        weight: &Matrix<D>,
        bias: Option<&Buffer<D, f32>>,
        out: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        product::matmul(self, product::MATMUL_GELU, rows, x, weight, bias, out)
    }

    fn matmul_gelu_erf(
        &self,
        rows: usize,
        x: &Buffer<D, bf16>,
        weight: &Matrix<D>,
        bias: Option<&Buffer<D, f32>>,
        out: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        product::matmul(self, product::MATMUL_GELU_ERF, rows, x, weight, bias, out)
    }

    fn matmul_silu_gate(
        &self,
        rows: usize,
        x: &Buffer<D, bf16>,
        gate: &Matrix<D>,
        up: &Matrix<D>,
        biases: Option<[&Buffer<D, f32>; 2]>,
        out: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        product::matmul_silu_gate(self, rows, x, [gate, up], biases, out)
    }

    fn matmul_add(
        &self,
        rows: usize,
        x: &Buffer<D, bf16>,
        weight: &Matrix<D>,
        bias: Option<&Buffer<D, f32>>,
        residual: &mut Buffer<D, f32>,
    ) -> Result<()> {
        assert!(residual.len >= rows * weight.outputs, "residual: [rows, {}]", weight.outputs);
        assert!(bias.is_none_or(|bias| bias.len == weight.outputs), "bias: [out]");
        let product = Product::new(rows, x, weight);
        let bias = bias.map_or(std::ptr::null(), Buffer::as_ptr);
        let params = |product| MatmulAddParams { product, bias, residual: residual.as_mut_ptr() };
        // SAFETY: the kernels' struct, shapes checked.
        unsafe { product.launch(self, product::MATMUL_ADD, params) }
    }

    fn rope(
        &self,
        rows: usize,
        heads: Heads,
        positions: &Buffer<D, u32>,
        cos_sin: &Buffer<D, f32>,
        qkv: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        assert!(positions.len >= rows && qkv.len >= rows * heads.qkv_width(), "qkv: [rows, ..]");
        let params = RopeParams {
            positions: positions.as_ptr(),
            cos_sin: cos_sin.as_ptr(),
            qkv: qkv.as_mut_ptr(),
            query_heads: count(heads.query),
            kv_heads: count(heads.kv),
            head_dim: count(heads.dim),
        };
        let threads = count((heads.dim / 2).next_multiple_of(32).min(THREADS as usize));
        // SAFETY: the kernel's struct, shapes checked; positions are the engine's to keep in range.
        unsafe { self.launch("rope", [rows, heads.query + heads.kv, 1], threads, 0, &params) }
    }

    fn store_kv(
        &self,
        layer: usize,
        shape: PoolShape,
        qkv: &Buffer<D, bf16>,
        entries: Entries<'_, Self>,
        slots: &Buffer<D, u32>,
        pool: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        qkv::store_kv(self, layer, shape, qkv, entries, slots, pool)
    }

    fn qkv(&self, mut args: Qkv<'_, Self>) -> Result<()> {
        if qkv::qkv(self, &mut args)? { Ok(()) } else { args.in_parts(self) }
    }

    fn copy_pages(
        &self,
        shape: PoolShape,
        copies: &[(u32, u32)],
        pool: &mut Buffer<D, bf16>,
    ) -> Result<()> {
        copy_pages::copy_pages(self, shape, copies, pool)
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<()> {
        attention::attention(self, args)
    }

    fn logits(
        &self,
        rows: usize,
        x: &Buffer<D, bf16>,
        head: &Matrix<D>,
        out: &mut Logits<Self>,
    ) -> Result<()> {
        product::logits(self, rows, x, head, out)
    }

    fn logprobs(
        &self,
        x: &Buffer<D, bf16>,
        head: &Matrix<D>,
        entries: Entries<'_, Self>,
        targets: &Buffer<D, u32>,
        out: &mut Buffer<D, f32>,
    ) -> Result<()> {
        product::logprobs(self, x, head, entries, targets, out)
    }

    fn add_guidance(
        &self,
        rows: usize,
        weight: f32,
        tuned: &Logits<Self>,
        untuned: &Logits<Self>,
        logits: &mut Logits<Self>,
    ) -> Result<()> {
        add_guidance::add_guidance(self, rows, weight, [tuned, untuned], logits)
    }

    fn sample(
        &self,
        rows: &[SampleRow],
        logits: &Logits<Self>,
        tokens: &mut Buffer<D, u32>,
    ) -> Result<()> {
        sample::sample(self, rows, logits, tokens)
    }

    fn advance(&self, args: Advance<'_, Self>) -> Result<()> {
        advance::advance(self, args)
    }
}

/// A shape as kernels take it.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("shapes fit in u32")
}

fn check_logits<D: Device>(logits: &Logits<CudaBackend<D>>, rows: usize) {
    let Logits { vocab, values, maxima } = logits;
    let fits =
        values.len >= rows * vocab && maxima.len >= rows * vocab.div_ceil(super::LOGIT_GROUP);
    assert!(fits, "logits: [{rows}, {vocab}], with their maxima");
}

fn pool_params(shape: PoolShape) -> PoolParams {
    PoolParams {
        layers: count(shape.layers),
        pages: count(shape.pages),
        query_heads: count(shape.heads.query),
        kv_heads: count(shape.heads.kv),
        head_dim: count(shape.heads.dim),
    }
}
