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
/// dropped, `■` had ended, `★` is the answer; `lost` is one that the guide could not score. Equal candidates
/// are counted at the first of them, and what had ended before is not drawn again.
pub fn draw(trace: &[Chunk], paint: Paint) -> String {
    let mut drawing = Drawing { trace, paint, answer: answer(trace), out: String::new() };
    drawing.branch(0, None, &mut String::new());
    drawing.out
}

/// Step and index of the candidate that became the answer.
fn answer(trace: &[Chunk]) -> Option<(usize, usize)> {
    let mut rank = Some(0);
    for (step, chunk) in trace.iter().enumerate().rev() {
        let index = chunk.candidates.iter().position(|c| c.rank.is_some() && c.rank == rank)?;
        let candidate = &chunk.candidates[index];
        if !candidate.carried {
            return Some((step, index));
        }
        rank = candidate.parent;
    }
    None
}

struct Drawing<'a> {
    trace: &'a [Chunk],
    paint: Paint,
    answer: Option<(usize, usize)>,
    out: String,
}

impl Drawing<'_> {
    /// Draws the candidates of a step that come from one beam, and what became of them.
    fn branch(&mut self, step: usize, parent: Option<usize>, indent: &mut String) {
        let Some(chunk) = self.trace.get(step) else { return };
        let children: Vec<(usize, &TracedCandidate)> = chunk
            .candidates
            .iter()
            .enumerate()
            .filter(|(_, c)| c.parent == parent && c.duplicate_of.is_none() && !c.carried)
            .collect();
        for (place, &(index, candidate)) in children.iter().enumerate() {
            let last = place + 1 == children.len();
            let equal = chunk.candidates.iter().filter(|c| c.duplicate_of == Some(index)).count();
            self.line(step, index, candidate, equal, indent, last);
            if let Some(rank) = candidate.rank {
                let len = indent.len();
                indent.push_str(if last { "   " } else { "│  " });
                self.branch(step + 1, Some(rank), indent);
                indent.truncate(len);
            }
        }
    }

    fn line(
        &mut self,
        step: usize,
        index: usize,
        candidate: &TracedCandidate,
        equal: usize,
        indent: &str,
        last: bool,
    ) {
        let Paint { bold, dim, off } = self.paint;
        let (mark, style) = match (candidate.rank, candidate.finish_reason) {
            _ if self.answer == Some((step, index)) => ("★", bold),
            (Some(_), None) => ("●", bold),
            (Some(_), Some(_)) => ("■", bold),
            (None, _) => ("·", dim),
        };
        let branch = if last { "└" } else { "├" };
        let times = if equal > 0 { format!(" ×{}", equal + 1) } else { String::new() };
        let text = match candidate.text.as_str() {
            "" => "(end)".to_owned(),
            text => format!("“{}”", text.replace('\n', "⏎")),
        };
        let gain = candidate.gain.map_or_else(|| "  lost".into(), |gain| format!("{gain:+6.2}"));
        let _ = writeln!(self.out, "{indent}{branch} {style}{mark} {gain} {text}{times}{off}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(parent: Option<usize>, text: &str, rank: Option<usize>) -> TracedCandidate {
        TracedCandidate {
            parent,
            text: text.into(),
            tokens: 1,
            gain: Some(1.0),
            rank,
            carried: false,
            duplicate_of: None,
            finish_reason: None,
            lost: None,
        }
    }

    #[test]
    fn the_tree_shows_who_lived_and_who_won() {
        let mut ended = candidate(None, "a.", Some(1));
        ended.finish_reason = Some("stop");
        let mut lost = candidate(None, "e", None);
        (lost.gain, lost.lost) = (None, Some("it is too long".into()));
        let first = Chunk {
            candidates: vec![
                candidate(None, "b", Some(0)),
                ended,
                candidate(None, "c", None),
                lost,
            ],
        };
        let mut waiting = candidate(Some(1), "", Some(0));
        (waiting.carried, waiting.finish_reason) = (true, Some("stop"));
        let mut equal = candidate(Some(0), "d", None);
        equal.duplicate_of = Some(0);
        let second = Chunk { candidates: vec![candidate(Some(0), "d", None), equal, waiting] };
        let expected = "\
├ ●  +1.00 “b”
│  └ ·  +1.00 “d” ×2
├ ★  +1.00 “a.”
├ ·  +1.00 “c”
└ ·   lost “e”
";
        assert_eq!(draw(&[first, second], Paint::new(false)), expected);
    }
}
