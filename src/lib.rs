//! trimtab steers a large, frozen language model with two small ones: weak-to-strong search
//! (Zhou et al., NeurIPS 2024, arXiv 2405.19262) on an engine of its own.
//!
//! The modules below are in reading order, from the ground up; imports go only downwards.
//! ARCHITECTURE.md is the map.
//!
//! # A search from Rust
//!
//! ```
//! use std::path::Path;
//! use std::sync::{Arc, Mutex};
//!
//! use trimtab::backend::cpu::CpuBackend;
//! use trimtab::engine::{Engine, Limits, Model, Pair};
//! use trimtab::guide::{GuideTokens, PairGuide, WeightedPair};
//! use trimtab::proposer::{LocalProposer, Prompt, Sampling};
//! use trimtab::scheduler::Scheduler;
//! use trimtab::search::Settings;
//! use trimtab::text::{PromptFormat, StopStrings, Tokenizer};
//!
//! # fn main() -> trimtab::error::Result<()> {
//! let models = Path::new("tests/golden");
//! let (base, tuned) = (models.join("gpt2"), models.join("gpt2_tuned"));
//! let backend = Arc::new(CpuBackend::new(None)?);
//! // Caches of 64 pages; 64 rows run together, 16 of them with logits.
//! let limits = Limits { pages: 64, rows: 64, logit_rows: 16 };
//! let tokenizer = Arc::new(Tokenizer::open(&base)?);
//! let (eos, longest_token) = (tokenizer.eos(), tokenizer.longest_token());
//! let format = PromptFormat::new(tokenizer);
//!
//! let engine = Engine::new(backend.clone(), Model::open(&*backend, &base, None)?, limits)?;
//! let ends = eos.into_iter().collect();
//! let proposer = LocalProposer::new(engine, format.clone(), ends, Vec::new())?;
//! let pair = Arc::new(Mutex::new(Pair::open(&backend, &tuned, &base, limits, 0)?));
//! let tokens = GuideTokens::Ids;
//! let pair = WeightedPair { pair, weight: 1.0, format, tokens, eos, longest_token };
//! let guide = PairGuide::new(vec![pair], None);
//!
//! let mut scheduler = Scheduler::new(proposer, guide, 1);
//! let settings = Settings {
//!     beam_width: 2,
//!     successors: 2,
//!     chunk_len: Some(4),
//!     max_new_tokens: 12,
//!     sampling: Sampling { temperature: 0.7, top_k: 50, top_p: 1.0 },
//!     seed: 1,
//!     stop: StopStrings::default(),
//!     compat: false,
//! };
//! scheduler.submit(0, &Prompt::Text("The film".into()), settings)?;
//! while scheduler.pending() > 0 {
//!     for finished in scheduler.tick()? {
//!         let outcome = finished.result?;
//!         assert!(outcome.response.tokens.len() <= 12);
//!         println!("{:+.2} {}", outcome.score.gain, outcome.response.to_text());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

// Floor 0
pub mod error;
// Floor 1
pub mod folder;
pub mod hash;
pub mod json;
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
