//! Made from kernels/params.h by bindgen: see tests/params.rs.
#![allow(dead_code)]

use crate::tensor::bf16;

pub const PAGE_LEN: u32 = 16;
pub const NO_SLOT: u32 = 4294967295;
pub const NO_TOKEN: u32 = 4294967295;
pub const SAMPLE_ROWS: u32 = 64;
pub const SAMPLE_THREADS: u32 = 512;
pub const SAMPLE_SHARED: u32 = 33112;
pub const LOGIT_GROUP: u32 = 16;
pub const GUIDANCE_THREADS: u32 = 1024;
pub const PAGE_COPIES: u32 = 256;
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct TileMap {
    pub words: [::std::os::raw::c_ulonglong; 16usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PoolParams {
    pub layers: ::std::os::raw::c_uint,
    pub pages: ::std::os::raw::c_uint,
    pub query_heads: ::std::os::raw::c_uint,
    pub kv_heads: ::std::os::raw::c_uint,
    pub head_dim: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct EmbedParams {
    pub tokens: *const ::std::os::raw::c_uint,
    pub table: *const bf16,
    pub out: *mut f32,
    pub width: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct EmbedAddParams {
    pub positions: *const ::std::os::raw::c_uint,
    pub table: *const bf16,
    pub x: *mut f32,
    pub width: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct RmsNormParams {
    pub x: *const f32,
    pub weight: *const f32,
    pub out: *mut bf16,
    pub width: ::std::os::raw::c_uint,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct LayerNormParams {
    pub x: *const f32,
    pub weight: *const f32,
    pub bias: *const f32,
    pub out: *mut bf16,
    pub width: ::std::os::raw::c_uint,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ProductParams {
    pub x: *const bf16,
    pub weight: *const bf16,
    pub rows: ::std::os::raw::c_uint,
    pub inputs: ::std::os::raw::c_uint,
    pub outputs: ::std::os::raw::c_uint,
    pub x_map: *const TileMap,
    pub weight_map: *const TileMap,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MatmulParams {
    pub product: ProductParams,
    pub bias: *const f32,
    pub out: *mut bf16,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MatmulAddParams {
    pub product: ProductParams,
    pub bias: *const f32,
    pub residual: *mut f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MatmulSiluGateParams {
    pub product: ProductParams,
    pub up: *const bf16,
    pub gate_bias: *const f32,
    pub up_bias: *const f32,
    pub out: *mut bf16,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct LogitsParams {
    pub product: ProductParams,
    pub out: *mut f32,
    pub maxima: *mut f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct LogprobsParams {
    pub product: ProductParams,
    pub starts: *const ::std::os::raw::c_uint,
    pub entries: *const ::std::os::raw::c_uint,
    pub targets: *const ::std::os::raw::c_uint,
    pub maxima: *mut f32,
    pub sums: *mut f32,
    pub out: *mut f32,
    pub tiles: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct RopeParams {
    pub positions: *const ::std::os::raw::c_uint,
    pub cos_sin: *const f32,
    pub qkv: *mut bf16,
    pub query_heads: ::std::os::raw::c_uint,
    pub kv_heads: ::std::os::raw::c_uint,
    pub head_dim: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct StoreKvParams {
    pub qkv: *const bf16,
    pub starts: *const ::std::os::raw::c_uint,
    pub entries: *const ::std::os::raw::c_uint,
    pub slots: *const ::std::os::raw::c_uint,
    pub pool: *mut bf16,
    pub shape: PoolParams,
    pub layer: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct QkvParams {
    pub product: ProductParams,
    pub bias: *const f32,
    pub positions: *const ::std::os::raw::c_uint,
    pub cos_sin: *const f32,
    pub starts: *const ::std::os::raw::c_uint,
    pub entries: *const ::std::os::raw::c_uint,
    pub slots: *const ::std::os::raw::c_uint,
    pub out: *mut bf16,
    pub pool: *mut bf16,
    pub shape: PoolParams,
    pub layer: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PageCopyParams {
    pub from: ::std::os::raw::c_uint,
    pub to: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CopyPagesParams {
    pub pool: *mut bf16,
    pub shape: PoolParams,
    pub copies: [PageCopyParams; 256usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct AttentionParams {
    pub qkv: *const bf16,
    pub pool: *const bf16,
    pub positions: *const ::std::os::raw::c_uint,
    pub row_segments: *const ::std::os::raw::c_uint,
    pub tables: *const ::std::os::raw::c_uint,
    pub out: *mut bf16,
    pub partial: *mut f32,
    pub shape: PoolParams,
    pub rows: ::std::os::raw::c_uint,
    pub layer: ::std::os::raw::c_uint,
    pub table_stride: ::std::os::raw::c_uint,
    pub window: ::std::os::raw::c_uint,
    pub splits: ::std::os::raw::c_uint,
    pub tile: ::std::os::raw::c_uint,
    pub scale: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct AddGuidanceParams {
    pub tuned: *const f32,
    pub untuned: *const f32,
    pub logits: *mut f32,
    pub maxima: *mut f32,
    pub tuned_vocab: ::std::os::raw::c_uint,
    pub untuned_vocab: ::std::os::raw::c_uint,
    pub vocab: ::std::os::raw::c_uint,
    pub weight: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SampleRowParams {
    pub logits: ::std::os::raw::c_uint,
    pub temperature: f32,
    pub top_k: ::std::os::raw::c_uint,
    pub top_p: f32,
    pub candidate: ::std::os::raw::c_uint,
    pub position: ::std::os::raw::c_uint,
    pub stream: [::std::os::raw::c_uint; 2usize],
    pub seed: [::std::os::raw::c_uint; 2usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SampleParams {
    pub logits: *const f32,
    pub maxima: *const f32,
    pub tokens: *mut ::std::os::raw::c_uint,
    pub vocab: ::std::os::raw::c_uint,
    pub rows: [SampleRowParams; 64usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct AdvanceParams {
    pub drawn: *const ::std::os::raw::c_uint,
    pub ends: *const ::std::os::raw::c_uint,
    pub tables: *const ::std::os::raw::c_uint,
    pub tokens: *mut ::std::os::raw::c_uint,
    pub positions: *mut ::std::os::raw::c_uint,
    pub slots: *mut ::std::os::raw::c_uint,
    pub history: *mut ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_uint,
    pub step: ::std::os::raw::c_uint,
    pub end_count: ::std::os::raw::c_uint,
    pub table_stride: ::std::os::raw::c_uint,
}
