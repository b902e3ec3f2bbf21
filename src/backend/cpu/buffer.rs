//! Aligned, zeroed memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::tensor::Element;

/// Elements on a 64-byte boundary, zero at first. Large buffers take memory only where they are
/// written: the system hands out zeroed pages lazily.
pub struct Buffer<T: Element> {
    start: NonNull<T>,
    len: usize,
}

/// A cache line, and the widest vector.
const ALIGN: usize = 64;

impl<T: Element> Buffer<T> {
    /// `len` zeros.
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<T>(len)
            .and_then(|layout| layout.align_to(ALIGN))
            .expect("a buffer's size fits in memory")
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `start` points to `len` elements that we own; elements are plain numbers, for
        // which zero bytes are valid.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: a buffer owns its memory, like a Vec.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Element> Sync for Buffer<T> {}

/// A buffer that several threads write to, each to places of its own.
#[derive(Clone, Copy)]
pub struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: `write` obliges its callers to keep to disjoint places.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares `slice` until the last copy of this is gone.
    pub fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    /// The slice that this was made from must still be borrowed, and no two threads may hold
    /// overlapping ranges.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from + len <= self.len, "{from} + {len} of {}", self.len);
        // SAFETY: in bounds; the caller keeps ranges apart and the slice alive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
