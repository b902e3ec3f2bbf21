//! A queue of a device as the backend uses it: launches that come again become graphs (replay.rs), on
//! every device alike.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::device::{Device, Launch};
use super::replay::{Replay, Step};
use crate::error::Result;

/// One queue, which knows all others of its device.
pub struct Queue<D: Device> {
    one: Arc<One<D>>,
    all: Arc<Mutex<Vec<Weak<One<D>>>>>,
}

/// A queue and what of its launches is held back.
struct One<D: Device> {
    // Graphs go before the device that made them.
    replay: Mutex<Replay<D::Graph>>,
    device: D,
}

impl<D: Device> One<D> {
    fn replay(&self) -> MutexGuard<'_, Replay<D::Graph>> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked of the device from now on comes after all launches until now.
    fn cut(&self) -> Result<()> {
        self.replay().cut(&self.device)
    }
}

impl<D: Device> Drop for One<D> {
    fn drop(&mut self) {
        // An error here can only be that of an earlier launch, which is reported elsewhere.
        let _ = self.cut();
    }
}

impl<D: Device> Queue<D> {
    /// The first queue of a device.
    pub fn new(device: D) -> Self {
        Self::among(Arc::default(), device)
    }

    fn among(all: Arc<Mutex<Vec<Weak<One<D>>>>>, device: D) -> Self {
        let one = Arc::new(One { replay: Mutex::default(), device });
        let mut queues = all.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&one));
        drop(queues);
        Self { one, all }
    }

    /// The device, for what is the same on all of its queues.
    pub fn device(&self) -> &D {
        &self.one.device
    }

    /// Graphs started on this queue so far.
    pub fn graphs_started(&self) -> u64 {
        self.one.replay().started()
    }

    /// As [`Device::side`].
    pub fn side(&self) -> Result<Self> {
        Ok(Self::among(self.all.clone(), self.device().side()?))
    }

    /// As [`Device::after`].
    pub fn after(&self, other: &Self) -> Result<()> {
        other.one.cut()?;
        self.one.cut()?;
        self.device().after(other.device())
    }

    /// As [`Device::alloc`].
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        self.one.cut()?;
        self.device().alloc(bytes)
    }

    /// As [`Device::free`]: what any queue holds back may be about this memory.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn free(&self, address: u64, bytes: usize) {
        let queues = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let queues: Vec<_> = queues.iter().filter_map(Weak::upgrade).collect();
        for queue in queues {
            // An error here can only be that of an earlier launch, which is reported elsewhere.
            let _ = queue.cut();
        }
        // SAFETY: the caller vouches for it.
        unsafe { self.device().free(address, bytes) }
    }

    /// As [`Device::upload`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        self.one.cut()?;
        // SAFETY: the caller vouches for it.
        unsafe { self.device().upload(source, target) }
    }

    /// As [`Device::download`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        self.one.cut()?;
        // SAFETY: the caller vouches for it.
        unsafe { self.device().download(source, target) }
    }

    /// Launches a kernel with the struct at `params`, which is copied at once.
    ///
    /// # Safety
    /// `params` must point to the kernel's own struct, of `bytes` bytes, and the addresses in it must be
    /// valid for what the kernel does with these shapes.
    pub unsafe fn launch(&self, launch: Launch, params: *const c_void, bytes: usize) -> Result<()> {
        let mut words = vec![0u64; bytes.div_ceil(size_of::<u64>())].into_boxed_slice();
        // SAFETY: the caller vouches for the struct's size; the copy has at least as many bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(params.cast::<u8>(), words.as_mut_ptr().cast(), bytes);
        }
        // SAFETY: the caller vouches for the parameters; nothing is freed before what is held back was
        // launched.
        unsafe { self.one.replay().launch(&self.one.device, Step { launch, params: words, bytes }) }
    }

    /// Says that what was launched since the last copy, wait or call of this may well be launched again,
    /// in the same shapes.
    pub fn end_step(&self) -> Result<()> {
        if self.device().launches_one_by_one() {
            return self.one.cut();
        }
        self.one.replay().end(&self.one.device)
    }
}
