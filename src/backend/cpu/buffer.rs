//! Aligned, zeroed memory.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::{MmapMut, MmapRaw};

use crate::backend::{Memory, Room, Share};
use crate::error::{Error, Result};
use crate::tensor::Element;

/// Elements on a cache line's boundary, zero at first. Buffers come from the system page by page, and
/// a page takes memory only once it is written: a large, mostly empty cache costs nothing.
/// (`alloc_zeroed` would write all of it where more than the usual alignment is asked for.)
pub struct Buffer<T: Element> {
    start: NonNull<T>,
    len: usize,
    /// Where the elements are; nobody else reads or writes this part of it.
    _map: Arc<MmapRaw>,
    _share: Share,
}

// SAFETY: a buffer is the only way to its elements, which are plain numbers.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Element> Sync for Buffer<T> {}

impl<T: Element> Buffer<T> {
    /// `len` zeros, taken from `memory`.
    ///
    /// # Errors
    /// [`Error::DeviceBudget`] when they are beyond the budget, [`Error::OutOfMemory`] when the system
    /// refuses them.
    pub fn new(memory: &Arc<Memory>, len: usize) -> Result<Self> {
        let share = memory.take(bytes_of::<T>(len))?;
        Ok(Self::within(Arc::new(map(bytes_of::<T>(len))?), 0, len, share))
    }

    /// The elements `from` a byte of `map` on, which must be zeros and nobody else's.
    fn within(map: Arc<MmapRaw>, from: usize, len: usize, share: Share) -> Self {
        assert!(from.is_multiple_of(LINE) && from + bytes_of::<T>(len) <= map.len());
        let start = NonNull::new(map.as_mut_ptr().wrapping_add(from)).expect("not at address 0");
        Self { start: start.cast(), len, _map: map, _share: share }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements from `start` on lie in the map, aligned, and are this buffer's;
        // they are plain numbers, for which any bytes, zeros at first, are valid.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// What every buffer's start is a multiple of.
pub const LINE: usize = 64;
/// A large page of x86-64, and of AArch64 with small pages of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;
/// Addresses that are asked for at a time.
const SLAB: usize = 64 << 20;

/// Hands out memory that is written once as a whole and then streamed through: buffers one behind the
/// other in large pages, which spare address translations. (One by one, most matrices of a small
/// model are too small for such pages; reading them then takes half as long again.)
#[derive(Default)]
pub struct Slabs(Mutex<Latest>);

/// The slab that was made last.
#[derive(Default)]
struct Latest {
    /// It goes with its last buffer.
    map: Weak<MmapRaw>,
    /// Bytes from its start that are taken.
    used: usize,
}

impl Slabs {
    /// `len` zeros, taken from `memory`.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn buffer<T: Element>(&self, memory: &Arc<Memory>, len: usize) -> Result<Buffer<T>> {
        let bytes = bytes_of::<T>(len);
        let share = memory.take(bytes)?;
        if bytes > SLAB {
            // By itself, so that a small one behind it does not keep it.
            let (map, from) = slab(bytes)?;
            return Ok(Buffer::within(map, from, len, share));
        }
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = |map: &Arc<MmapRaw>| bytes <= map.len() - latest.used;
        let (map, from) = match latest.map.upgrade().filter(room) {
            Some(map) => (map, latest.used),
            None => slab(SLAB)?,
        };
        // The next one begins on a line within the map, or finds no room in it.
        let used = (from + bytes).next_multiple_of(LINE).min(map.len());
        *latest = Latest { map: Arc::downgrade(&map), used };
        Ok(Buffer::within(map, from, len, share))
    }
}

/// Room for `bytes` from some large page's start on.
fn slab(bytes: usize) -> Result<(Arc<MmapRaw>, usize)> {
    let room = bytes.checked_next_multiple_of(LARGE_PAGE).unwrap_or(bytes);
    let map = map(room.saturating_add(LARGE_PAGE))?;
    // Only a wish: a system without large pages goes on with small ones.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let from = map.as_ptr().align_offset(LARGE_PAGE);
    Ok((Arc::new(map), from))
}

fn bytes_of<T>(len: usize) -> usize {
    len.checked_mul(size_of::<T>()).expect("a buffer's size fits in memory")
}

/// Zeros from the system.
fn map(bytes: usize) -> Result<MmapRaw> {
    let map = MmapMut::map_anon(bytes).map_err(|source| Error::OutOfMemory { bytes, source })?;
    Ok(map.into())
}

/// Memory that programs can have, where the system says so (Linux).
pub fn host_room() -> Option<Room> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kib| kib * 1024)
    };
    let swap = bytes("SwapTotal:").unwrap_or(0);
    Some(Room { free: bytes("MemAvailable:")?, total: bytes("MemTotal:")? + swap })
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

    /// Goal: weights that are read together stand together, each on lines of its own, also those that
    /// no slab has room for; who drops one leaves the others.
    #[test]
    fn a_slab_holds_buffers_one_behind_the_other() {
        let (memory, slabs) = (Memory::new(None), Slabs::default());
        let slab = SLAB / size_of::<u32>();
        let lens = [3, 1 << 20, 0, slab, 100, slab - 2, 1];
        let mut buffers: Vec<Buffer<u32>> =
            lens.iter().map(|&len| slabs.buffer(&memory, len).expect("memory")).collect();
        let start = |buffer: &Buffer<u32>| buffer.as_ptr().addr();
        assert!(start(&buffers[0]).is_multiple_of(LARGE_PAGE));
        assert_eq!(start(&buffers[1]), start(&buffers[0]) + LINE);
        assert!(buffers.iter().all(|buffer| start(buffer).is_multiple_of(LINE)));
        for (value, buffer) in (1..).zip(&mut buffers) {
            assert!(buffer.iter().all(|&number| number == 0));
            buffer.fill(value);
        }
        assert_eq!(memory.taken(), lens.iter().sum::<usize>() * size_of::<u32>());
        drop(buffers.remove(1));
        for (value, buffer) in [1, 3, 4, 5, 6, 7].into_iter().zip(&buffers) {
            assert!(buffer.iter().all(|&number| number == value));
        }
        drop(buffers);
        assert_eq!(memory.taken(), 0);
        // The last one's memory went with it.
        let next: Buffer<u32> = slabs.buffer(&memory, slab).expect("memory");
        assert!(next.iter().all(|&number| number == 0));
    }
}
