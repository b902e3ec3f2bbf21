//! Floor 2: Hugging Face checkpoints on disk. File dtypes end here: what leaves is
//! bf16 or f32.
//!
//! The format is safetensors (<https://github.com/huggingface/safetensors>): a header length of 8
//! bytes, a JSON header, then the tensors' bytes. A file is not trusted: everything a header says
//! is checked when the checkpoint is opened, and reading a tensor later goes wrong only where the disk
//! does or the file has been changed, which is an error too: nothing is mapped.

mod checkpoint;
mod header;
mod shard;
mod view;

pub use checkpoint::Checkpoint;
pub use view::TensorView;
