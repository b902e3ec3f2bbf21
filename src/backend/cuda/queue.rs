//! A queue of a device as the backend uses it: launches that come again become graphs (replay.rs), on
//! every device alike.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::device::Device;
use super::replay::{Replay, Step};
use crate::error::Result;

/// One queue, which knows all others of its device.
pub struct Queue<D: Device> {
    one: Arc<One<D>>,
    all: Arc<All<D>>,
}

/// All queues of a device.
struct All<D: Device> {
    queues: Mutex<Vec<Weak<One<D>>>>,
    graphs_started: AtomicU64,
    launches: AtomicU64,
}

impl<D: Device> All<D> {
    fn queues(&self) -> MutexGuard<'_, Vec<Weak<One<D>>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        // Buffers keep their queue, so nobody is left who would want the results.
        let _ = self.cut();
    }
}

impl<D: Device> Queue<D> {
    /// The first queue of a device.
    pub fn new(device: D) -> Self {
        let all = All {
            queues: Mutex::default(),
            graphs_started: AtomicU64::new(0),
            launches: AtomicU64::new(0),
        };
        Self::among(Arc::new(all), device)
    }

    fn among(all: Arc<All<D>>, device: D) -> Self {
        let one = Arc::new(One { replay: Mutex::default(), device });
        let mut queues = all.queues();
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&one));
        drop(queues);
        Self { one, all }
    }

    /// The device, for what is the same on all of its queues.
    pub fn device(&self) -> &D {
        &self.one.device
    }

    /// Graphs started on all queues of the device so far.
    pub fn graphs_started(&self) -> u64 {
        self.all.graphs_started.load(Ordering::Relaxed)
    }

    /// Kernels launched on all queues of the device so far, by themselves or in graphs.
    pub fn launches(&self) -> u64 {
        self.all.launches.load(Ordering::Relaxed)
    }

    /// As [`Device::side`].
    pub fn side(&self) -> Result<Self> {
        Ok(Self::among(self.all.clone(), self.device().side()?))
    }

    /// As [`Device::after`].
    pub fn after(&self, other: &Self) -> Result<()> {
        // What happens between two joins comes again as a step does.
        other.end_step()?;
        self.end_step()?;
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
        let queues: Vec<_> = self.all.queues().iter().filter_map(Weak::upgrade).collect();
        for queue in queues {
            queue.replay().cut_unasked(&queue.device);
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

    /// Launches a kernel.
    ///
    /// # Safety
    /// As [`Launcher::launch`](super::replay::Launcher::launch).
    pub unsafe fn launch(&self, step: Step) -> Result<()> {
        self.all.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller vouches for the parameters; nothing is freed before what is held back was
        // launched.
        unsafe { self.one.replay().launch(&self.one.device, step) }
    }

    /// Says that what was launched since the last copy, wait or call of this may well be launched again,
    /// in the same shapes.
    pub fn end_step(&self) -> Result<()> {
        if self.device().launches_one_by_one() {
            return self.one.cut();
        }
        if self.one.replay().end(&self.one.device)? {
            self.all.graphs_started.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
