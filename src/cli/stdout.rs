//! Results on stdout, line by line: whoever reads them may go away, which is no panic.

use std::fmt::Arguments;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Whether the process was started without a stdout.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Takes note that the process was started without a stdout: what is written there is lost.
pub fn is_closed() {
    CLOSED.store(true, Ordering::Relaxed);
}

/// An error where there is no stdout to write results to.
pub fn check() -> Result<()> {
    match CLOSED.load(Ordering::Relaxed) {
        true => {
            let reason = "it is closed; send it to a file or to a program, or use --output where there is one";
            Err(Error::io("write to", STDOUT)(io::Error::other(reason)))
        }
        false => Ok(()),
    }
}

/// Writes to stdout.
pub fn write(text: Arguments<'_>) -> Result<()> {
    check()?;
    io::stdout().write_fmt(text).map_err(Error::io("write to", STDOUT))
}

/// Writes whole lines at once, which their reader has when this returns.
pub fn write_lines(lines: &[u8]) -> Result<()> {
    check()?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines).and_then(|()| stdout.flush()).map_err(Error::io("write to", STDOUT))
}

/// Waits until all has left the process, and the disk has it if stdout is a file.
pub fn finish() -> Result<()> {
    let finished = io::stdout().flush().and_then(|()| {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
    });
    finished.map_err(Error::io("write to", STDOUT))
}

/// True if whoever reads results has read enough, as `head` does.
pub fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. }
        if path == Path::new(STDOUT) && source.kind() == io::ErrorKind::BrokenPipe)
}
