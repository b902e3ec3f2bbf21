//! Device memory that is freed when it is dropped.

use std::marker::PhantomData;
use std::sync::Arc;

use super::device::Device;
use super::queue::Queue;
use crate::backend::{Memory, Share};
use crate::error::Result;
use crate::tensor::{Element, bf16};

/// Memory of a device, freed when dropped.
pub struct Buffer<D: Device, T: Element> {
    queue: Arc<Queue<D>>,
    pub(super) address: u64,
    pub(super) len: usize,
    element: PhantomData<T>,
    _share: Share,
}

impl<D: Device, T: Element> Buffer<D, T> {
    /// `len` zeros, taken from `memory`.
    pub(super) fn new(queue: &Arc<Queue<D>>, memory: &Arc<Memory>, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's size fits in memory");
        let share = memory.take(bytes)?;
        let address = queue.alloc(bytes)?;
        Ok(Self { queue: queue.clone(), address, len, element: PhantomData, _share: share })
    }

    pub(super) fn as_ptr(&self) -> *const T {
        self.address as *const T
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.address as *mut T
    }
}

impl<D: Device, T: Element> Drop for Buffer<D, T> {
    fn drop(&mut self) {
        // SAFETY: `alloc` gave this address for these bytes; ops borrow the buffer, and a device
        // does not free memory before what was launched earlier, on any queue, is done with it.
        unsafe { self.queue.free(self.address, self.len * size_of::<T>()) }
    }
}

/// Weights as they are, `[outputs, inputs]` row-major.
pub struct Matrix<D: Device> {
    /// `[outputs, inputs]`
    pub(super) data: Buffer<D, bf16>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}
