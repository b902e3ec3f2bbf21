//! Tokenizers, templates, bytes and stop strings: on small tokenizers made here, and on the golden
//! ones.

#![allow(clippy::unwrap_used)]

mod chat;
mod fixtures;
mod golden;
mod prompt;
mod real;
mod response;
mod tokenizer;
