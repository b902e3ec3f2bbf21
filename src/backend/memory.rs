//! What may be taken of a device's memory, and what is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// What a device has, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// What can still be had.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

/// The budget of one device, shared by all handles on it: every buffer and every matrix takes its
/// share of it, and gives it back when it is dropped.
pub struct Memory {
    /// Bytes that may be taken; `usize::MAX` where nobody knows.
    limit: AtomicUsize,
    /// All that the device has, where that is known.
    total: Option<usize>,
    taken: AtomicUsize,
    allocations: AtomicU64,
}

impl Memory {
    /// A budget of `limit` bytes, or of any number if not given.
    pub fn new(limit: Option<usize>) -> Arc<Self> {
        Self::within(limit, None)
    }

    fn within(limit: Option<usize>, total: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit.unwrap_or(usize::MAX)),
            total,
            taken: AtomicUsize::new(0),
            allocations: AtomicU64::new(0),
        })
    }

    /// All that a device has free but for one part in `margin`.
    pub fn of_device(room: Option<Room>, margin: usize) -> Arc<Self> {
        let limit = room.map(|room| room.free - room.free / margin);
        Self::within(limit, room.map(|room| room.total))
    }

    /// Sets the budget anew.
    ///
    /// # Errors
    /// [`Error::Flag`] for more than the device has, [`Error::DeviceBudget`] when more is taken already.
    pub fn limit_to(&self, limit: usize) -> Result<()> {
        if let Some(total) = self.total.filter(|&total| limit > total) {
            let reason = format!("must be at most {total}, all that there is");
            return Err(Error::flag("--device-memory", reason));
        }
        let taken = self.taken();
        if taken > limit {
            let what = "what is taken already";
            return Err(Error::DeviceBudget { bytes: taken, what, taken: 0, limit });
        }
        self.limit.store(limit, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that may be taken in all, where that is known.
    pub fn limit(&self) -> Option<usize> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|&limit| limit != usize::MAX)
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes that may still be taken, where that is known.
    pub fn left(&self) -> Option<usize> {
        self.limit().map(|limit| limit.saturating_sub(self.taken()))
    }

    /// How often something was taken.
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// [`Error::DeviceBudget`] when that is more than is left; then nothing is taken.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Share> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |taken: usize| taken.checked_add(bytes).filter(|&sum| sum <= limit);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|taken| Error::DeviceBudget { bytes, what: "one buffer", taken, limit })?;
        self.allocations.fetch_add(1, Ordering::Relaxed);
        Ok(Share { memory: self.clone(), bytes })
    }
}

/// Bytes that are taken until this is dropped.
pub struct Share {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a budget holds to the byte, what is dropped is there again, and what is refused changes
    /// nothing.
    #[test]
    fn a_budget_holds_to_the_byte() {
        let memory = Memory::new(Some(100));
        let first = memory.take(60).expect("there is room");
        let error = memory.take(41).err().expect("there is none").to_string();
        for number in ["41", "60", "100", "101"] {
            assert!(error.contains(number), "{error}");
        }
        let second = memory.take(40).expect("just enough");
        assert!(memory.take(usize::MAX).is_err() && memory.take(1).is_err());
        assert_eq!((memory.taken(), memory.left(), memory.allocations()), (100, Some(0), 2));
        drop(first);
        assert_eq!((memory.taken(), memory.left()), (40, Some(60)));
        assert!(memory.limit_to(39).is_err());
        memory.limit_to(40).expect("as much as is taken");
        drop(second);
        assert_eq!(memory.left(), Some(40));
        assert!(Memory::new(None).left().is_none());

        let memory = Memory::of_device(Some(Room { free: 80, total: 100 }), 4);
        assert_eq!(memory.left(), Some(60));
        memory.limit_to(100).expect("all that there is");
        let error = memory.limit_to(101).expect_err("more than there is").to_string();
        assert_eq!(error, "--device-memory must be at most 100, all that there is");
    }
}
