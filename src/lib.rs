//! trimtab steers a large, frozen language model with two small ones: weak-to-strong search
//! (Zhou et al., NeurIPS 2024, arXiv 2405.19262) on an engine of its own.
//!
//! The modules below are in reading order, from the ground up; imports go only downwards.
//! ARCHITECTURE.md is the map.

// Floor 0
pub mod error;
// Floor 1
pub mod philox;
pub mod tensor;
// Floor 2: these do not see one another
pub mod backend;
pub mod kv_cache;
pub mod text;
pub mod weights;
// Floor 3
pub mod engine;
// Floor 4
pub mod guide;
pub mod proposer;
// Floor 5
pub mod search;
// Floor 6
pub mod scheduler;
// Floor 7
pub mod server;
// Floor 8
pub mod cli;
