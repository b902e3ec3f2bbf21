//! Aligned, zeroed memory.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;

use crate::backend::{Memory, Share};
use crate::error::{Error, Result};
use crate::tensor::Element;

/// Elements on a page boundary, zero at first. Buffers come from the system page by page, and a
/// page takes memory only once it is written: a large, mostly empty cache costs nothing.
/// (`alloc_zeroed` would write all of it where more than the usual alignment is asked for.)
pub struct Buffer<T: Element> {
    map: MmapMut,
    len: usize,
    element: PhantomData<T>,
    _share: Share,
}

impl<T: Element> Buffer<T> {
    /// `len` zeros, taken from `memory`.
    ///
    /// # Errors
    /// [`Error::DeviceBudget`] when they are beyond the budget, [`Error::OutOfMemory`] when the system
    /// refuses them.
    pub fn new(memory: &Arc<Memory>, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's size fits in memory");
        let share = memory.take(bytes)?;
        let map =
            MmapMut::map_anon(bytes).map_err(|source| Error::OutOfMemory { bytes, source })?;
        Ok(Self { map, len, element: PhantomData, _share: share })
    }

    /// Asks for large pages, which spare address translations: for what is written once as a
    /// whole and then streamed through.
    pub fn prefer_huge_pages(&self) {
        // Only a wish: a system without them goes on with small ones.
        #[cfg(target_os = "linux")]
        let _ = self.map.advise(memmap2::Advice::HugePage);
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the map holds at least `len` elements and starts on a page boundary; elements
        // are plain numbers, for which any bytes, zeros at first, are valid.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

/// Memory that programs can still have, where the system says so (Linux).
pub fn host_free_bytes() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a cache that no machine can hold is an error that names its size.
    #[test]
    fn a_buffer_beyond_all_memory_is_an_error() {
        let error =
            Buffer::<u32>::new(&Memory::new(None), 1 << 58).err().expect("nobody has an exbibyte");
        assert!(error.to_string().contains("1152921504606846976 bytes"), "{error}");
    }

    /// Goal: a cache for many sequences costs nothing until there are many sequences.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_takes_no_memory_until_it_is_written() {
        let resident_pages = || -> usize {
            let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
            text.split(' ').nth(1).expect("second field").parse().expect("a number")
        };
        let before = resident_pages();
        let buffer = Buffer::<f32>::new(&Memory::new(None), 1 << 28).expect("1 GiB of addresses");
        assert_eq!(buffer[1 << 27], 0.0);
        assert_eq!(buffer.as_ptr().addr() % 64, 0);
        // Half of it, for what other tests take meanwhile.
        assert!(resident_pages() < before + (1 << 17), "memory was written");
    }
}
