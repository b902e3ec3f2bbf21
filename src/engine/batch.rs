//! A ragged batch: rows of several sequences, as the device's ops want them.

use std::ops::Range;

use crate::backend::{Advance, Backend, PAGE_LEN, Segment};
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
}

/// Device memory for one batch.
pub(super) struct Batch<B: Backend> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows]`
    pub tokens: B::Buffer<u32>,
    /// `[rows]`
    pub positions: B::Buffer<u32>,
    /// `[rows]` page · PAGE_LEN + offset, or `NO_SLOT`
    pub slots: B::Buffer<u32>,
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
    row_segments: Vec<u32>,
    tables: Vec<u32>,
}

impl<B: Backend> Batch<B> {
    /// Room for `rows` rows, each of which may be a sequence of its own with `pages` pages.
    pub fn new(backend: &B, rows: usize, pages: usize) -> Result<Self> {
        Ok(Self {
            rows: 0,
            tokens: backend.alloc(rows)?,
            positions: backend.alloc(rows)?,
            slots: backend.alloc(rows)?,
            row_segments: backend.alloc(rows)?,
            tables: backend.alloc(rows * pages)?,
            table_stride: 0,
            segments: Vec::new(),
            host: Host::default(),
        })
    }

    /// Bytes of device memory that [`Batch::new`] takes.
    pub fn bytes(rows: usize, pages: usize) -> usize {
        (4 * rows + rows * pages) * size_of::<u32>()
    }

    /// Lays out those rows of `spans` that lie in `window`, a range of all their rows in order;
    /// tables reach `ahead` tokens beyond each span, for which there must be room already.
    pub fn fill(
        &mut self,
        backend: &B,
        spans: &[Span<'_>],
        window: Range<usize>,
        ahead: usize,
    ) -> Result<()> {
        let Host { tokens, positions, slots, row_segments, tables } = &mut self.host;
        for list in [&mut *tokens, positions, slots, row_segments, tables] {
            list.clear();
        }
        self.segments.clear();
        self.rows = window.len();
        let mut pieces: Vec<(&Span<'_>, Range<usize>)> = Vec::new();
        let mut first = 0;
        for span in spans {
            let end = first + span.tokens.len();
            let (from, to) = (window.start.max(first), window.end.min(end));
            if from < to {
                pieces.push((span, from - first..to - first));
            }
            first = end;
        }
        let pages_used =
            |span: &Span<'_>, end: usize| (span.start + end + ahead).div_ceil(PAGE_LEN);
        self.table_stride =
            pieces.iter().map(|(span, rows)| pages_used(span, rows.end)).max().unwrap_or(0);
        for (span, rows) in pieces {
            let end = span.start + span.tokens.len() + ahead;
            assert!(end <= span.sequence.len(), "append before running");
            let segment = self.segments.len();
            self.segments.push(Segment {
                first_row: tokens.len(),
                rows: rows.len(),
                first_position: span.start + rows.start,
            });
            let table = tables.len();
            tables.extend(span.sequence.pages().take(self.table_stride));
            tables.resize(table + self.table_stride, 0);
            for row in rows {
                let position = span.start + row;
                let page = tables[table + position / PAGE_LEN] as usize;
                tokens.push(span.tokens[row]);
                positions.push(position as u32);
                slots.push((page * PAGE_LEN + position % PAGE_LEN) as u32);
                row_segments.push(segment as u32);
            }
        }
        backend.upload(tokens, &mut self.tokens)?;
        backend.upload(positions, &mut self.positions)?;
        backend.upload(slots, &mut self.slots)?;
        backend.upload(row_segments, &mut self.row_segments)?;
        backend.upload(tables, &mut self.tables)
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
