//! Floor 2: which pages of the K/V cache belong to whom. Pure bookkeeping, no device.
//!
//! A [`Sequence`] is a list of reference-counted pages and a length. Fork is `clone`, release is
//! `drop`; a page returns to its [`PagePool`] when its last owner lets go. Before rows are
//! written, [`Sequence::append`] makes the slots they go to and returns the page copies that the
//! device must run first (copy-on-write of a shared last page).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
pub use crate::tensor::PAGE_LEN;

/// The free pages of one physical pool, or of several that are laid out alike.
///
/// Cloning gives another handle on the same pages.
#[derive(Clone, Debug)]
pub struct PagePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    capacity: usize,
    free: Mutex<Vec<u32>>,
    /// The most pages ever in use at once.
    most_used: AtomicUsize,
}

impl Shared {
    /// The list is valid after every push and pop, so a panic elsewhere cannot have torn it.
    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One page in use; back in the pool when dropped.
#[derive(Debug)]
struct Page {
    id: u32,
    shared: Arc<Shared>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.shared.free().push(self.id);
    }
}

impl PagePool {
    /// A pool of `capacity` free pages with the ids `0..capacity`.
    pub fn new(capacity: usize) -> Self {
        Self::over(0..u32::try_from(capacity).expect("page ids are u32"))
    }

    /// A pool of free pages with the given ids: two users can share one physical pool.
    pub fn over(ids: Range<u32>) -> Self {
        let capacity = ids.len();
        // Popped from the end: low ids first, which keeps a young pool dense.
        let (free, most_used) = (Mutex::new(ids.rev().collect()), AtomicUsize::new(0));
        Self { shared: Arc::new(Shared { capacity, free, most_used }) }
    }

    /// All pages, free or not.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Pages that nobody owns.
    pub fn free(&self) -> usize {
        self.shared.free().len()
    }

    /// The most pages that were ever in use at the same time.
    pub fn most_used(&self) -> usize {
        self.shared.most_used.load(Ordering::Relaxed)
    }

    /// An empty sequence over this pool.
    pub fn sequence(&self) -> Sequence {
        Sequence { shared: self.shared.clone(), pages: Vec::new(), len: 0 }
    }
}

/// A copy of a whole page that must run, in all layers, before new rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The shared page.
    pub from: u32,
    /// The fresh page that takes its place in one sequence.
    pub to: u32,
}

/// What a sequence holds, without saying what that is; see [`Sequence::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    last_page: Option<u32>,
    len: usize,
}

/// The cached tokens of one hypothesis under one model (or under a pair that walks together).
#[derive(Clone, Debug)]
pub struct Sequence {
    shared: Arc<Shared>,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl Sequence {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Page ids in order of position.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.pages.iter().map(|page| page.id)
    }

    /// Two sequences of one pool that have equal marks hold the same tokens: a page is written by one
    /// owner only, and those who share one were forked where they still were the same.
    pub fn mark(&self) -> Mark {
        Mark { last_page: self.pages.last().map(|page| page.id), len: self.len }
    }

    /// How many of the pages another sequence owns too.
    pub fn shared_pages(&self) -> usize {
        self.pages.iter().filter(|page| Arc::strong_count(page) > 1).count()
    }

    /// Makes room for `tokens` more and counts them in; returns the copies to run before they
    /// are written. On an error nothing has changed.
    ///
    /// Within one batch of appends, run all [`Sequence::truncate`]s first: a page that a
    /// truncate frees could otherwise become the target of one copy after having been the
    /// source of another.
    pub fn append(&mut self, tokens: usize) -> Result<Option<PageCopy>> {
        if tokens == 0 {
            return Ok(None);
        }
        let last_is_shared = !self.len.is_multiple_of(PAGE_LEN)
            && self.pages.last().is_some_and(|page| Arc::strong_count(page) > 1);
        let fresh = (self.len + tokens).div_ceil(PAGE_LEN) - self.pages.len();
        let mut pages = self.take(fresh + usize::from(last_is_shared))?.into_iter();
        let mut copy = None;
        if last_is_shared && let (Some(last), Some(page)) = (self.pages.last_mut(), pages.next()) {
            copy = Some(PageCopy { from: last.id, to: page.id });
            *last = page;
        }
        self.pages.extend(pages);
        self.len += tokens;
        Ok(copy)
    }

    /// Forgets all tokens from position `len` on and gives up the pages they alone filled.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "cannot truncate {} tokens to {len}", self.len);
        self.len = len;
        self.pages.truncate(len.div_ceil(PAGE_LEN));
    }

    /// `count` pages or none.
    fn take(&self, count: usize) -> Result<Vec<Arc<Page>>> {
        let mut free = self.shared.free();
        let Some(rest) = free.len().checked_sub(count) else {
            return Err(Error::OutOfPages { needed: count, free: free.len() });
        };
        let ids = free.split_off(rest);
        self.shared.most_used.fetch_max(self.shared.capacity - rest, Ordering::Relaxed);
        Ok(ids
            .into_iter()
            .rev()
            .map(|id| Arc::new(Page { id, shared: self.shared.clone() }))
            .collect())
    }
}

/// How large one search can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Tokens of the longest response.
    pub response: usize,
    /// Tokens between two selections.
    pub chunk: usize,
    /// Beams kept.
    pub beams: usize,
    /// Candidates while a step runs.
    pub candidates: usize,
}

impl Lifetime {
    /// That of a response which somebody else wrote, of so many tokens at most: it is scored once and never
    /// forked.
    pub fn given(response: usize) -> Self {
        Self { response, chunk: response, beams: 1, candidates: 0 }
    }

    /// Whether the response is given.
    pub fn is_given(&self) -> bool {
        self.candidates == 0
    }

    /// Pages that the search may hold at once in one pool, after a prompt of `prompt` tokens.
    ///
    /// The prompt's pages are shared by all; each beam may own all pages of its response; while
    /// a step runs, each candidate owns the pages of its chunk; and each of them may own a copy
    /// of the page that it began in.
    pub fn pages(&self, prompt: usize) -> usize {
        let chunk = self.chunk.min(self.response);
        prompt.div_ceil(PAGE_LEN)
            + self.beams.saturating_mul(self.response.div_ceil(PAGE_LEN) + 1)
            + self.candidates.saturating_mul(chunk.div_ceil(PAGE_LEN) + 1)
    }
}
