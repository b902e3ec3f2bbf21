//! Floor 2: text to tokens and back. Tokenizers, prompt and chat templates, bytes, stop strings.

mod bytes;
mod chat;
mod date;
mod growth;
mod prompt;
mod stop;
mod tokenizer;

pub use bytes::complete_utf8;
pub use chat::{ChatTemplate, Message};
pub use date::Date;
pub use prompt::{Prompt, PromptFormat, Template};
pub use stop::{StopMatch, StopStrings};
pub use tokenizer::{Bos, Tokenizer, panics_are_caught};
