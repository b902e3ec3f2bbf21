//! The `trimtab` command.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the process was started without a stdout.
static NO_STDOUT: AtomicBool = AtomicBool::new(false);

/// Looked at before `main`: the standard library opens /dev/null in place of a stdout that is closed, and
/// what is written there would be lost without an error.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look_at_stdout;

#[cfg(target_os = "linux")]
extern "C" fn look_at_stdout() {
    // SAFETY: the call only asks for a descriptor's flags.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    NO_STDOUT.store(flags == -1, Ordering::Relaxed);
}

fn main() -> ExitCode {
    // A file that reaches the limit of file sizes is an error where it is written, not the process's end.
    // SAFETY: no thread runs yet, and to ignore a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    trimtab::cli::main(!NO_STDOUT.load(Ordering::Relaxed))
}
