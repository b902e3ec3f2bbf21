//! Floor 2, seam 2: what the forward pass sees of a device.
//!
//! About a dozen and a half fused ops with no mode flags. An op has one name from top to bottom:
//! `Backend::rms_norm`, `tests/kernels/rms_norm.rs`, the bench row `rms_norm` (and, on a GPU,
//! `kernels/rms_norm.cu`).
//!
//! Numbers: weights, activations and the K/V cache are stored in bf16, the residual stream and
//! logits in f32, every sum is f32 or wider. An op's result for one row never depends on which
//! other rows are in the batch nor on the number of threads: the order of every sum is fixed by
//! the row's own shape.

pub mod cpu;
pub mod cuda;
mod logits;
mod memory;
mod qkv;

use std::sync::Arc;

use crate::error::Result;
use crate::philox::Draw;
pub use crate::tensor::PAGE_LEN;
use crate::tensor::{Element, HostMatrix, bf16};
pub use logits::{LOGIT_GROUP, Logits};
pub use memory::{Memory, Room, Share};
pub use qkv::{Qkv, Rotary};

/// The slot of a row that has ended ([`Backend::advance`]): nothing is stored for it.
pub const NO_SLOT: u32 = u32::MAX;

/// What [`Backend::sample`] draws where logits are no distribution: one is NaN, or the largest infinite.
pub const NO_TOKEN: u32 = u32::MAX;

/// The heads of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads; each serves `query / kv` query heads.
    pub kv: usize,
    /// Channels of one head.
    pub dim: usize,
}

impl Heads {
    /// Channels of one row of fused queries, keys and values: q heads, then k, then v.
    pub fn qkv_width(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }

    /// Channels of one row of attention's output.
    pub fn query_width(&self) -> usize {
        self.query * self.dim
    }
}

/// The shape of one model's K/V pool:
/// `[layers, pages, kv_heads, 2 (K, then V), PAGE_LEN, head_dim]` of bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Transformer layers.
    pub layers: usize,
    /// Pages per layer.
    pub pages: usize,
    /// The layer's heads.
    pub heads: Heads,
}

impl PoolShape {
    /// Numbers in one page of one layer.
    pub fn page_len(&self) -> usize {
        self.heads.kv * 2 * PAGE_LEN * self.heads.dim
    }

    /// Numbers in the whole pool.
    pub fn len(&self) -> usize {
        self.layers * self.pages * self.page_len()
    }

    /// True if there is no room at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that one page takes over all layers.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.page_len() * size_of::<bf16>()
    }

    /// Where the key (`which` = 0) or value (`which` = 1) of a slot begins.
    pub fn offset(&self, layer: usize, page: usize, head: usize, which: usize) -> usize {
        (((layer * self.pages + page) * self.heads.kv + head) * 2 + which)
            * PAGE_LEN
            * self.heads.dim
    }
}

/// Rows of a batch that belong to one sequence and follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment's first row in the batch.
    pub first_row: usize,
    /// How many rows it has, at least one.
    pub rows: usize,
    /// The first row's position in its sequence; the others follow.
    pub first_position: usize,
}

/// The entries of a batch, tokens of its sequences, that each row stands for: one, or several where
/// sequences with the same past go on with the same token, which then is run once for all.
pub struct Entries<'a, B: Backend> {
    /// Rows of the batch.
    pub rows: usize,
    /// `[rows + 1]`: those of row r stand at `starts[r]..starts[r + 1]` in `list`.
    pub starts: &'a B::Buffer<u32>,
    /// `[entries]`, each once.
    pub list: &'a B::Buffer<u32>,
}

/// What [`Backend::attention`] reads and writes, for one layer and all rows of a batch.
///
/// Row r of segment s at position p attends to positions `0..=p` of its own sequence, or to the
/// last `window` of them, whose keys and values (its own included) are already in the pool. A row
/// that has ended ([`Backend::advance`]) is at position 0, wherever its segment would be by now, and
/// nobody looks at its result.
pub struct Attention<'a, B: Backend> {
    /// The layer, counted from 0.
    pub layer: usize,
    /// The pool's shape.
    pub shape: PoolShape,
    /// How many positions a row sees at most, its own included.
    pub window: Option<usize>,
    /// Factor on the dot products, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// `[rows, (q + 2 kv) * head_dim]`; only the queries are read.
    pub qkv: &'a B::Buffer<bf16>,
    /// All keys and values.
    pub pool: &'a B::Buffer<bf16>,
    /// The batch's segments, in the order of their rows, without gaps.
    pub segments: &'a [Segment],
    /// `[rows]` each row's position.
    pub positions: &'a B::Buffer<u32>,
    /// `[rows]` each row's segment.
    pub row_segments: &'a B::Buffer<u32>,
    /// `[segments, table_stride]` page ids, in order of position.
    pub tables: &'a B::Buffer<u32>,
    /// Pages per row of `tables`.
    pub table_stride: usize,
    /// `[rows, q * head_dim]`
    pub out: &'a mut B::Buffer<bf16>,
}

/// How one row's next token is picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow {
    /// The row of logits to draw from.
    pub logits: u32,
    /// 0 takes the most probable token (the lowest id on a tie) and draws nothing.
    pub temperature: f32,
    /// Keep only the `top_k` most probable tokens and those tied with the last of them;
    /// 0 keeps all.
    pub top_k: u32,
    /// Then keep only the most probable tokens that reach this mass; 1.0 keeps all.
    pub top_p: f32,
    /// The random number.
    pub draw: Draw,
}

/// What [`Backend::advance`] reads and writes.
pub struct Advance<'a, B: Backend> {
    /// Rows of the batch, each a sequence of its own.
    pub rows: usize,
    /// Tokens drawn before in this chunk.
    pub step: usize,
    /// `[rows]` the tokens just drawn.
    pub drawn: &'a B::Buffer<u32>,
    /// `[ends]` the tokens that end a row, perhaps none.
    pub ends: &'a B::Buffer<u32>,
    /// `[rows, table_stride]` page ids, in order of position.
    pub tables: &'a B::Buffer<u32>,
    /// Pages per row of `tables`.
    pub table_stride: usize,
    /// `[rows]`
    pub tokens: &'a mut B::Buffer<u32>,
    /// `[rows]`
    pub positions: &'a mut B::Buffer<u32>,
    /// `[rows]` page · PAGE_LEN + offset, or [`NO_SLOT`]
    pub slots: &'a mut B::Buffer<u32>,
    /// `[steps, rows]`
    pub history: &'a mut B::Buffer<u32>,
}

/// A device that can run a transformer.
///
/// Buffers are owned by the caller. Ops assert the shapes that they are given (our own mistakes)
/// and return an error only for what the device itself refuses. `rows` may be smaller than a
/// buffer has room for; the rest of the buffer is left alone.
///
/// # Queues
///
/// A handle is a queue: what is asked of one handle happens in the order in which it was asked for;
/// what is asked of two handles of a device ([`Backend::side`]) happens in any order, unless
/// [`Backend::after`] says otherwise. There is one rule:
///
/// *A buffer has an owner, the one handle that writes it. Who reads another's buffer says `after`
/// before it reads, and the owner says `after` before it writes that buffer again.*
///
/// Weights are owned by the handle that loads them, before any engine is built, and never written
/// again; all else belongs to an engine's handle. Dropping a buffer waits for all queues. So queues
/// meet in three places, all in the engine: a pair's queues begin after its weights were loaded
/// (`Pair::new`); guidance reads a pair's logits, and a pair reads the tokens that the base model
/// drew (both by `Engine::lend`, whose other half is `Engine::reclaim`).
pub trait Backend: Send + Sync + Sized + 'static {
    /// Device memory holding elements of type `T`.
    type Buffer<T: Element>: Send + Sync;
    /// A weight matrix in the layout that this device likes best.
    type Matrix: Send + Sync;

    /// What the device is, for people.
    fn describe(&self) -> String;

    /// What the bits of results depend on, apart from models and settings: where this says the same, they
    /// are the same.
    fn arithmetic(&self) -> String {
        self.describe()
    }

    /// An error if this device's attention cannot have such heads.
    fn check_heads(&self, _heads: Heads) -> Result<()> {
        Ok(())
    }

    /// The budget that all buffers and matrices are taken from, the same for all handles on a device.
    fn memory(&self) -> &Arc<Memory>;

    /// Tokens that are drawn before the host looks at them: 1 where looking costs nothing, more
    /// where it means waiting for the device. Sequences that end in between stand still.
    fn steps_per_look(&self) -> usize {
        1
    }

    /// True if logits have their maxima here ([`Logits`]), for [`Backend::sample`] to read.
    fn keeps_maxima(&self) -> bool {
        false
    }

    /// Another handle on the same device, with a queue and scratch memory of its own.
    fn side(&self) -> Result<Self>;

    /// Bytes that such a handle takes.
    fn side_bytes(&self) -> usize {
        0
    }

    /// What is asked of this handle from now on happens after all that was asked of `other`, a
    /// handle on the same device, until now. The host does not wait.
    fn after(&self, other: &Self) -> Result<()>;

    /// A zeroed buffer of `len` elements.
    ///
    /// # Errors
    /// [`DeviceBudget`](crate::error::Error::DeviceBudget) where the budget does not allow it, and
    /// another where the device does not have it.
    fn alloc<T: Element>(&self, len: usize) -> Result<Self::Buffer<T>>;

    /// Elements in the buffer.
    fn len<T: Element>(&self, buffer: &Self::Buffer<T>) -> usize;

    /// Copies `source` to the beginning of `target`.
    fn upload<T: Element>(&self, source: &[T], target: &mut Self::Buffer<T>) -> Result<()>;

    /// Copies the beginning of `source` to `target`, waiting for all that was asked of this handle
    /// before.
    fn download<T: Element>(&self, source: &Self::Buffer<T>, target: &mut [T]) -> Result<()>;

    /// Bytes that a weight matrix of `rows` rows and `cols` columns takes.
    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        rows * cols * size_of::<bf16>()
    }

    /// Lays out a weight matrix.
    fn matrix(&self, matrix: HostMatrix<'_>) -> Result<Self::Matrix>;

    /// `out[r] = table[tokens[r]]`; `table: [vocab, width]`, `out: [rows, width]`.
    fn embed(
        &self,
        rows: usize,
        tokens: &Self::Buffer<u32>,
        table: &Self::Matrix,
        out: &mut Self::Buffer<f32>,
    ) -> Result<()>;

    /// `x[r] += table[positions[r]]`: learned positions; shapes as in [`Backend::embed`].
    fn embed_add(
        &self,
        rows: usize,
        positions: &Self::Buffer<u32>,
        table: &Self::Matrix,
        x: &mut Self::Buffer<f32>,
    ) -> Result<()>;

    /// `out = x / sqrt(mean(x²) + eps) · weight`; `x: [rows, width]`, `weight: [width]`.
    fn rms_norm(
        &self,
        rows: usize,
        x: &Self::Buffer<f32>,
        weight: &Self::Buffer<f32>,
        eps: f32,
        out: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// `out = (x − mean) / sqrt(var + eps) · weight + bias`; `x: [rows, width]`.
    fn layer_norm(
        &self,
        rows: usize,
        x: &Self::Buffer<f32>,
        weight: &Self::Buffer<f32>,
        bias: &Self::Buffer<f32>,
        eps: f32,
        out: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// `out = x · weightᵀ + bias`; `x: [rows, in]`, `weight: [out, in]`, `out: [rows, out]`.
    fn matmul(
        &self,
        rows: usize,
        x: &Self::Buffer<bf16>,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer<f32>>,
        out: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// `residual += x · weightᵀ + bias`; shapes as in [`Backend::matmul`].
    fn matmul_add(
        &self,
        rows: usize,
        x: &Self::Buffer<bf16>,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer<f32>>,
        residual: &mut Self::Buffer<f32>,
    ) -> Result<()>;

    /// `out = gelu(x · weightᵀ + bias)`, in the tanh form `gelu(v) = 0.5 v (1 + tanh(sqrt(2/π) (v +
    /// 0.044715 v³)))`; shapes as in [`Backend::matmul`].
    fn matmul_gelu(
        &self,
        rows: usize,
        x: &Self::Buffer<bf16>,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer<f32>>,
        out: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// `out = gelu(x · weightᵀ + bias)`, exact: `gelu(v) = 0.5 v (1 + erf(v / √2))`; shapes as in
    /// [`Backend::matmul`].
    fn matmul_gelu_erf(
        &self,
        rows: usize,
        x: &Self::Buffer<bf16>,
        weight: &Self::Matrix,
        bias: Option<&Self::Buffer<f32>>,
        out: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// `out = silu(x · gateᵀ + biases[0]) · (x · upᵀ + biases[1])`, `silu(v) = v / (1 + e^−v)`; both
    /// matrices and all else as in [`Backend::matmul`].
    fn matmul_silu_gate(
        &self,
        rows: usize,
        x: &Self::Buffer<bf16>,
        gate: &Self::Matrix,
        up: &Self::Matrix,
        biases: Option<[&Self::Buffer<f32>; 2]>,
        out: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// Rotates queries and keys in place, pairing channel i with i + head_dim / 2 (Su et al.,
    /// arXiv 2104.09864, in Hugging Face's order of channels).
    ///
    /// `qkv: [rows, (q + 2 kv) * head_dim]`, `cos_sin: [positions, head_dim]` with the cosines of
    /// the head_dim / 2 angles first, then their sines.
    fn rope(
        &self,
        rows: usize,
        heads: Heads,
        positions: &Self::Buffer<u32>,
        cos_sin: &Self::Buffer<f32>,
        qkv: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// Writes each row's keys and values, of `qkv: [rows, (q + 2 kv) * head_dim]`, to the slots of
    /// its entries in one layer: `slots[e]` = page · PAGE_LEN + offset, or [`NO_SLOT`] for nowhere.
    fn store_kv(
        &self,
        layer: usize,
        shape: PoolShape,
        qkv: &Self::Buffer<bf16>,
        entries: Entries<'_, Self>,
        slots: &Self::Buffer<u32>,
        pool: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// A layer's queries, keys and values: the matmul, the rotation and the storing at once. The bits are those of the
    /// three ops.
    fn qkv(&self, args: Qkv<'_, Self>) -> Result<()> {
        args.in_parts(self)
    }

    /// Copies whole pages, `(from, to)`, in all layers. No page is both a source and a target,
    /// and no page is the target of two copies.
    fn copy_pages(
        &self,
        shape: PoolShape,
        copies: &[(u32, u32)],
        pool: &mut Self::Buffer<bf16>,
    ) -> Result<()>;

    /// Softmax attention over pages; see [`Attention`].
    fn attention(&self, args: Attention<'_, Self>) -> Result<()>;

    /// `out = x · headᵀ` in f32; `x: [rows, width]`, `head: [vocab, width]`, `out: [rows, vocab]` with its
    /// maxima.
    fn logits(
        &self,
        rows: usize,
        x: &Self::Buffer<bf16>,
        head: &Self::Matrix,
        out: &mut Logits<Self>,
    ) -> Result<()>;

    /// `out[e] = log softmax(x[r] · headᵀ)[targets[e]]` for each entry e of each row r, with no
    /// `[rows, vocab]` in memory.
    fn logprobs(
        &self,
        x: &Self::Buffer<bf16>,
        head: &Self::Matrix,
        entries: Entries<'_, Self>,
        targets: &Self::Buffer<u32>,
        out: &mut Self::Buffer<f32>,
    ) -> Result<()>;

    /// `logits += weight · (log softmax(tuned) − log softmax(untuned))`, each `[rows, vocab]` with a vocab of its
    /// own: emulated fine-tuning (Mitchell et al., arXiv 2310.12962) with weight = 1/β. Each softmax is over its
    /// whole row; the logits of tokens that not all three have become −∞. The maxima are those of the sums.
    fn add_guidance(
        &self,
        rows: usize,
        weight: f32,
        tuned: &Logits<Self>,
        untuned: &Logits<Self>,
        logits: &mut Logits<Self>,
    ) -> Result<()>;

    /// Picks a token for each of `rows` from the row of `logits: [_, vocab]` that it names.
    ///
    /// Softmax of logits / temperature over the kept tokens, then the first token id, in id
    /// order, at which the running sum exceeds `draw.uniform()` times the kept mass; [`NO_TOKEN`]
    /// where the logits are no distribution.
    fn sample(
        &self,
        rows: &[SampleRow],
        logits: &Logits<Self>,
        tokens: &mut Self::Buffer<u32>,
    ) -> Result<()>;

    /// Moves `rows` rows of a batch to their next tokens, so that a chunk runs without the host:
    /// `history[step, r] = tokens[r] = drawn[r]`, `positions[r] += 1`, and `slots[r]` becomes the
    /// place that row r of `tables: [rows, table_stride]` gives the new position, if it gives one.
    ///
    /// A row whose token is one of `ends` has ended and stands still, whatever is drawn for it later:
    /// its token stays that one, also in the history's further steps, its position is 0 and its slot
    /// [`NO_SLOT`]. So does a row for which [`NO_TOKEN`] was drawn, which the history has once; its token
    /// is 0 from then on.
    fn advance(&self, args: Advance<'_, Self>) -> Result<()>;
}
