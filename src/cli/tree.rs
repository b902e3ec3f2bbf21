//! A search drawn as a tree.

use std::fmt::Write;

use crate::search::{Chunk, TracedCandidate};

/// Escape sequences, or nothing where the output is no terminal.
#[derive(Clone, Copy)]
pub struct Paint {
    pub bold: &'static str,
    pub dim: &'static str,
    pub off: &'static str,
}

impl Paint {
    /// For a terminal, or for a file.
    pub fn new(terminal: bool) -> Self {
        if terminal {
            Self { bold: "\x1b[1m", dim: "\x1b[2m", off: "\x1b[0m" }
        } else {
            Self { bold: "", dim: "", off: "" }
        }
    }
}

/// The candidates of every step under the beam that they were forked from. `●` lived on, `·` was
/// dropped, `■` had ended; equal candidates are counted at the first of them.
pub fn draw(trace: &[Chunk], paint: Paint) -> String {
    let mut out = String::new();
    branch(trace, 0, None, &mut String::new(), paint, &mut out);
    out
}

fn branch(
    trace: &[Chunk],
    step: usize,
    parent: Option<usize>,
    indent: &mut String,
    paint: Paint,
    out: &mut String,
) {
    let Some(chunk) = trace.get(step) else { return };
    let children: Vec<(usize, &TracedCandidate)> = chunk
        .candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.parent == parent && candidate.duplicate_of.is_none())
        .collect();
    for (place, (index, candidate)) in children.iter().enumerate() {
        let last = place + 1 == children.len();
        let equal = chunk.candidates.iter().filter(|c| c.duplicate_of == Some(*index)).count();
        let (mark, style) = match (candidate.rank, candidate.finish_reason) {
            (Some(_), None) => ("●", paint.bold),
            (Some(_), Some(_)) => ("■", paint.bold),
            (None, _) => ("·", paint.dim),
        };
        let times = if equal > 0 { format!(" (×{})", equal + 1) } else { String::new() };
        let text = candidate.text.replace('\n', "⏎");
        // A finished one that only waits has nothing new to say.
        let text = if text.is_empty() { "(ended)".into() } else { format!("“{text}”") };
        let _ = writeln!(
            out,
            "{indent}{} {style}{mark} {:+6.2}  {text}{times}{}",
            if last { "└" } else { "├" },
            candidate.gain,
            paint.off
        );
        if let Some(rank) = candidate.rank {
            let len = indent.len();
            indent.push_str(if last { "   " } else { "│  " });
            branch(trace, step + 1, Some(rank), indent, paint, out);
            indent.truncate(len);
        }
    }
}
