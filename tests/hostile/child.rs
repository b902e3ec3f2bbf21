//! Work on hostile files in a process of its own, so that a stack that overflows or memory that runs out is
//! seen as what it is.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the child finds its file or folder.
const GIVEN: &str = "TRIMTAB_HOSTILE";
/// Bytes of memory that the work may take.
const MEMORY: usize = 256 << 20;
/// Processor time that it may take.
const TIME: Duration = Duration::from_secs(4);

/// The most memory that this process has had.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Processor time that this process has had, for itself and in the kernel, which counts in hundredths of a
/// second.
fn used() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat[stat.rfind(')').unwrap()..].split_whitespace().skip(12).take(2);
    Duration::from_millis(10 * fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>())
}

/// The file or folder that a child is given; none in the process that starts children.
pub fn given() -> Option<PathBuf> {
    std::env::var_os(GIVEN).map(PathBuf::from)
}

/// Does a child's work, and says how it went.
pub fn measured<T, E: Display>(work: impl FnOnce() -> Result<T, E>) {
    let (before, started) = (peak(), used());
    let result = work();
    let (memory, time) = (peak() - before, used() - started);
    match result {
        Ok(_) => println!("taken"),
        Err(error) => println!("refused: {error}"),
    }
    println!("{} MiB, {time:?}", memory >> 20);
    assert!(time < TIME, "{time:?}");
    assert!(memory < MEMORY, "{} MiB", memory >> 20);
    println!("in bounds");
}

/// What a child said, the test of that name, of a file or folder; and whether it kept to the bounds.
pub fn outcome(test: &str, path: &Path) -> (String, bool) {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -c 0; ulimit -v 2097152; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(GIVEN, path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > 15 * TIME {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let is_fine = output.status.success() && said.contains("in bounds");
    (format!("{} {said}", output.status), is_fine)
}
