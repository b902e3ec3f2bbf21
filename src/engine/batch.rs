//! A ragged batch: rows of several sequences, as the device's ops want them.

use std::ops::Range;

use crate::backend::{Advance, Backend, Entries, PAGE_LEN, Segment};
use crate::error::Result;
use crate::kv_cache::Sequence;

/// Consecutive tokens of one sequence that are to be run.
///
/// The sequence must already have room for them ([`Sequence::append`]): token i goes to position
/// `start + i`. Prefill, decode (one token) and teacher-forced scoring are all spans.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    /// The tokens to run.
    pub tokens: &'a [u32],
    /// The first token's position.
    pub start: usize,
    /// Where their keys and values go, and those of all tokens before them are.
    pub sequence: &'a Sequence,
    /// What it has in common with another span.
    pub common: Option<Common>,
}

impl<'a> Span<'a> {
    /// A span that is run by itself.
    pub fn new(tokens: &'a [u32], start: usize, sequence: &'a Sequence) -> Self {
        Self { tokens, start, sequence, common: None }
    }
}

/// The first `tokens` tokens of a span are those of span `with`, an earlier one of the same call, and
/// so is all that came before them: they need to be run only once for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// The other span's place in the call.
    pub with: usize,
    /// How many.
    pub tokens: usize,
}

/// Device memory for one batch.
///
/// A batch's *entries* are the tokens of its spans in order; each is one row, or shares one with
/// entries that are the same token after the same past.
pub(super) struct Batch<B: Backend> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows]`
    pub tokens: B::Buffer<u32>,
    /// `[rows]`
    pub positions: B::Buffer<u32>,
    /// `[entries]` page · PAGE_LEN + offset, or `NO_SLOT`
    pub slots: B::Buffer<u32>,
    /// `[rows + 1]` where each row's entries stand in `entries`.
    entry_starts: B::Buffer<u32>,
    /// `[entries]`
    entries: B::Buffer<u32>,
    /// `[rows]`
    pub row_segments: B::Buffer<u32>,
    /// `[segments, table_stride]`
    pub tables: B::Buffer<u32>,
    /// Pages per row of `tables`.
    pub table_stride: usize,
    /// In the order of their rows.
    pub segments: Vec<Segment>,
    host: Host,
}

/// The same arrays on the host, kept so that a step allocates nothing.
#[derive(Default)]
struct Host {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    /// `[entries]` each one's row.
    entry_rows: Vec<u32>,
    entry_starts: Vec<u32>,
    entries: Vec<u32>,
    row_segments: Vec<u32>,
    tables: Vec<u32>,
}

impl Host {
    fn clear(&mut self) {
        let Self { tokens, positions, slots, entry_rows, row_segments, tables, .. } = self;
        for list in [tokens, positions, slots, entry_rows, row_segments, tables] {
            list.clear();
        }
    }

    /// Adds a piece of a span; its first `common` entries have their rows already.
    fn push(
        &mut self,
        span: &Span<'_>,
        piece: Range<usize>,
        common: usize,
        table_stride: usize,
        segments: &mut Vec<Segment>,
    ) {
        let table = self.tables.len();
        self.tables.extend(span.sequence.pages().take(table_stride));
        self.tables.resize(table + table_stride, 0);
        for index in piece.clone() {
            let position = span.start + index;
            let page = self.tables[table + position / PAGE_LEN] as usize;
            self.slots.push((page * PAGE_LEN + position % PAGE_LEN) as u32);
        }
        let rows = piece.len() - common;
        if rows == 0 {
            self.tables.truncate(table);
            return;
        }
        let (segment, first_row) = (segments.len() as u32, self.tokens.len());
        let first_position = span.start + piece.start + common;
        segments.push(Segment { first_row, rows, first_position });
        self.tokens.extend(&span.tokens[piece.start + common..piece.end]);
        self.positions.extend((first_position..first_position + rows).map(|at| at as u32));
        self.entry_rows.extend((first_row..first_row + rows).map(|row| row as u32));
        self.row_segments.resize(first_row + rows, segment);
    }

    /// Lists the entries by their rows.
    fn list_entries(&mut self) {
        let Self { tokens, entry_rows, entry_starts, entries, .. } = self;
        entry_starts.clear();
        entry_starts.resize(tokens.len() + 1, 0);
        entries.clear();
        entries.resize(entry_rows.len(), 0);
        for &row in &*entry_rows {
            entry_starts[row as usize + 1] += 1;
        }
        for row in 0..tokens.len() {
            entry_starts[row + 1] += entry_starts[row];
        }
        // Filling a row's list moves its start to the next row's.
        for (entry, &row) in entry_rows.iter().enumerate() {
            let at = &mut entry_starts[row as usize];
            entries[*at as usize] = entry as u32;
            *at += 1;
        }
        entry_starts.rotate_right(1);
        entry_starts[0] = 0;
    }
}

impl<B: Backend> Batch<B> {
    /// Room for `rows` rows, each of which may be a sequence of its own with `pages` pages.
    pub fn new(backend: &B, rows: usize, pages: usize) -> Result<Self> {
        Ok(Self {
            rows: 0,
            tokens: backend.alloc(rows)?,
            positions: backend.alloc(rows)?,
            slots: backend.alloc(rows)?,
            entry_starts: backend.alloc(rows + 1)?,
            entries: backend.alloc(rows)?,
            row_segments: backend.alloc(rows)?,
            tables: backend.alloc(rows * pages)?,
            table_stride: 0,
            segments: Vec::new(),
            host: Host::default(),
        })
    }

    /// Bytes of device memory that [`Batch::new`] takes.
    pub fn bytes(rows: usize, pages: usize) -> usize {
        (6 * rows + 1 + rows * pages) * size_of::<u32>()
    }

    /// The entries that each row stands for.
    pub fn entries(&self) -> Entries<'_, B> {
        Entries { rows: self.rows, starts: &self.entry_starts, list: &self.entries }
    }

    /// Lays out those entries of `spans` that lie in `window`, a range of all their tokens in order;
    /// tables reach `ahead` tokens beyond each span, for which there must be room already.
    pub fn fill(
        &mut self,
        backend: &B,
        spans: &[Span<'_>],
        window: Range<usize>,
        ahead: usize,
    ) -> Result<()> {
        self.host.clear();
        self.segments.clear();
        // What of each span lies in the window, and the span's first entry.
        let mut pieces: Vec<(&Span<'_>, Range<usize>)> = Vec::new();
        let mut firsts = Vec::with_capacity(spans.len());
        let mut first = 0;
        for span in spans {
            let end = first + span.tokens.len();
            let (from, to) = (window.start.max(first), window.end.min(end));
            if from < to {
                pieces.push((span, from - first..to - first));
            }
            firsts.push(first);
            first = end;
        }
        let pages_used =
            |span: &Span<'_>, end: usize| (span.start + end + ahead).div_ceil(PAGE_LEN);
        self.table_stride =
            pieces.iter().map(|(span, piece)| pages_used(span, piece.end)).max().unwrap_or(0);
        for (span, piece) in pieces {
            let end = span.start + span.tokens.len() + ahead;
            assert!(end <= span.sequence.len(), "append before running");
            // Entries whose rows are in the batch already; not where the window cuts them off.
            let common = span.common.and_then(|Common { with, tokens }| {
                Some((firsts[with].checked_sub(window.start)?, tokens.min(piece.end)))
            });
            let (with, common) = common.unwrap_or_default();
            self.host.entry_rows.extend_from_within(with..with + common);
            self.host.push(span, piece, common, self.table_stride, &mut self.segments);
        }
        self.host.list_entries();
        self.rows = self.host.tokens.len();
        let host = &self.host;
        backend.upload(&host.tokens, &mut self.tokens)?;
        backend.upload(&host.positions, &mut self.positions)?;
        backend.upload(&host.slots, &mut self.slots)?;
        backend.upload(&host.entry_starts, &mut self.entry_starts)?;
        backend.upload(&host.entries, &mut self.entries)?;
        backend.upload(&host.row_segments, &mut self.row_segments)?;
        backend.upload(&host.tables, &mut self.tables)
    }

    /// Moves every row, each a sequence of its own, to the token drawn for it, or lets it stand still
    /// if it has ended.
    pub fn advance(
        &mut self,
        backend: &B,
        step: usize,
        drawn: &B::Buffer<u32>,
        ends: &B::Buffer<u32>,
        history: &mut B::Buffer<u32>,
    ) -> Result<()> {
        for segment in &mut self.segments {
            assert_eq!(segment.rows, 1, "one row per sequence");
            segment.first_position += 1;
        }
        backend.advance(Advance {
            rows: self.rows,
            step,
            drawn,
            ends,
            tables: &self.tables,
            table_stride: self.table_stride,
            tokens: &mut self.tokens,
            positions: &mut self.positions,
            slots: &mut self.slots,
            history,
        })
    }
}
