//! What only the command line reads, for the fuzz targets in `fuzz/`.

use std::path::Path;

use super::input::{self, Shard};
use super::memory::Bytes;
use super::models::GuideFlag;
use super::resume;
use crate::error::Result;

/// Reads a file of prompts. Returns its lines that are prompts.
///
/// # Errors
/// As the command line's.
pub fn prompts(path: &Path) -> Result<usize> {
    let items = input::prompts(path)?;
    Ok(items.iter().filter(|item| item.content.is_ok()).count())
}

/// Reads a text as the value of each flag that has its own way to write one. Returns how many take it.
pub fn flags(text: &str) -> usize {
    let taken = [
        text.parse::<Bytes>().is_ok(),
        text.parse::<GuideFlag>().is_ok(),
        text.parse::<Shard>().is_ok(),
        resume::are_settings(text.as_bytes()),
    ];
    taken.into_iter().filter(|&taken| taken).count()
}
