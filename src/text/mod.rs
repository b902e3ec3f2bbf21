//! Floor 2: text to tokens and back. Tokenizers, prompt and chat templates, bytes, stop strings.

mod bounds;
mod bytes;
mod chat;
mod date;
pub mod fields;
mod growth;
mod library;
mod prompt;
mod shown;
mod side_files;
mod stop;
mod tokenizer;

pub use bytes::complete_utf8;
pub use chat::{ChatTemplate, Message, SpecialTokens};
pub use date::Date;
pub use library::panics_are_caught;
pub use prompt::{Prompt, PromptFormat, PromptText, Template};
pub use shown::shown;
pub use stop::{StopMatch, StopStrings};
pub use tokenizer::{Bos, Tokenizer};
