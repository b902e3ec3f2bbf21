//! Floor 2: Hugging Face checkpoints on disk, memory-mapped. File dtypes end here: what leaves is
//! bf16 or f32.
//!
//! The format is safetensors (<https://github.com/huggingface/safetensors>): a header length of 8
//! bytes, a JSON header, then the tensors' bytes. A file is not trusted: everything a header says
//! is checked when the checkpoint is opened, so that reading a tensor later cannot go wrong.

mod checkpoint;
mod header;
mod view;

pub use checkpoint::Checkpoint;
pub use view::TensorView;
