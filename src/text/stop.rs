//! Strings that end a response.

use crate::error::{Error, Result};

/// Strings that end a response where they first appear. Searched as bytes, so that neither token
/// nor chunk edges matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Bytes of the longest one.
    longest: usize,
}

/// Where a stop string lies in a response, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopMatch {
    /// Its first byte.
    pub start: usize,
    /// The byte behind its last.
    pub end: usize,
}

impl StopStrings {
    /// # Errors
    /// [`Error::Flag`] for an empty string, which would end every response at once.
    pub fn new(strings: Vec<String>) -> Result<Self> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::flag("--stop", "must not be empty; leave it out to stop nowhere"));
        }
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Ok(Self { strings, longest })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// The match that starts first in a response, and of those the longest.
    ///
    /// The first `searched` bytes were searched before and held no match; one that begins in them
    /// and ends behind them is still found.
    pub fn find(&self, bytes: &[u8], searched: usize) -> Option<StopMatch> {
        let from = searched.min(bytes.len()).saturating_sub(self.longest.saturating_sub(1));
        (from..bytes.len()).find_map(|start| {
            self.strings
                .iter()
                .filter(|stop| bytes[start..].starts_with(stop.as_bytes()))
                .map(|stop| StopMatch { start, end: start + stop.len() })
                .max_by_key(|found| found.end)
        })
    }

    /// How many bytes at the end of a response may be the beginning of a stop string: the longest
    /// suffix that one of them begins with and goes beyond.
    pub fn begun(&self, bytes: &[u8]) -> usize {
        let from = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        (from..bytes.len())
            .find(|&start| {
                let suffix = &bytes[start..];
                self.strings
                    .iter()
                    .any(|stop| stop.len() > suffix.len() && stop.as_bytes().starts_with(suffix))
            })
            .map_or(0, |start| bytes.len() - start)
    }
}
