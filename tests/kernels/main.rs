//! Every op of `Backend`, alone, against the f64 oracle: awkward sizes, random inputs, every
//! instruction set that the machine has, one thread and two. One file per op, named as the op.
#![allow(clippy::unwrap_used)]

#[path = "../oracle/mod.rs"]
mod oracle;

mod harness;

mod add_guidance;
mod advance;
mod attention;
mod copy_pages;
mod early;
mod embed;
mod embed_add;
mod layer_norm;
mod logits;
mod logprobs;
mod matmul;
mod matmul_add;
mod matmul_gelu;
mod matmul_gelu_erf;
mod matmul_silu_gate;
mod qkv;
mod rms_norm;
mod rope;
mod sample;
mod store_kv;
