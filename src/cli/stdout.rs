//! Results on stdout, line by line: whoever reads them may go away, which is no panic.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes to stdout what `print!` would.
macro_rules! out {
    ($($part:tt)*) => {
        $crate::cli::stdout::write(format_args!($($part)*))
    };
}

/// Writes to stdout what `println!` would.
macro_rules! outln {
    ($($part:tt)*) => {
        $crate::cli::stdout::write(format_args!("{}\n", format_args!($($part)*)))
    };
}

pub(super) use {out, outln};

/// Its name in messages.
pub const STDOUT: &str = "stdout";

/// Writes to stdout.
pub fn write(text: Arguments<'_>) -> Result<()> {
    io::stdout().write_fmt(text).map_err(Error::io("write to", STDOUT))
}

/// True if whoever reads results has read enough, as `head` does.
pub fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. }
        if path == Path::new(STDOUT) && source.kind() == io::ErrorKind::BrokenPipe)
}
