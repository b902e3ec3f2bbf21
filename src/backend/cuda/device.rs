//! Seam 3: what the CUDA backend sees of a device. Two implementors: [`super::Driver`] on a real
//! GPU, [`super::Emulator`] with the same kernels on the CPU.

use std::fmt::{self, Display, Formatter};

use super::replay::Launcher;
use crate::backend::Room;
use crate::error::Result;

/// A kernel as its source declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it is found by.
    pub name: &'static str,
    /// Marked `EARLY`: it waits by itself for the kernel in front of it.
    pub early: bool,
}

/// All kernels, found by build.rs.
pub const KERNELS: &[Kernel] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// One launch of a kernel, apart from its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The name of one of [`KERNELS`].
    pub kernel: &'static str,
    /// It may start before the launch in front of it in its queue is done.
    pub early: bool,
    /// Blocks in x, y and z, none of them 0.
    pub grid: [u32; 3],
    /// Threads of a block, whole warps.
    pub threads: u32,
    /// Bytes of dynamic shared memory per block.
    pub shared_bytes: usize,
}

impl Display for Launch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { kernel, grid: [x, y, z], threads, shared_bytes, .. } = self;
        write!(
            f,
            "{kernel} over {x} x {y} x {z} blocks of {threads} threads with {shared_bytes} bytes"
        )?;
        f.write_str(" of shared memory")
    }
}

/// A matrix of bf16 in device memory, `[rows, inputs]` row-major, and the boxes of `box_rows` rows by 64 numbers that the
/// copy engine is to copy from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileShape {
    /// A multiple of 16.
    pub address: u64,
    /// Numbers of a row, a multiple of 8.
    pub inputs: usize,
    /// Rows of the matrix.
    pub rows: usize,
    /// Rows of a box, at most 256.
    pub box_rows: usize,
    /// Bytes from this matrix to another of the same shape, of which a box then has half of its rows, in turns of 8.
    /// Then `rows` is a multiple of 8.
    pub twin: Option<u64>,
}

/// One queue of a device, with the device's memory: what is asked of a queue later happens later.
pub trait Device: Launcher + Send + Sync + Sized + 'static {
    /// One part in so many of the free memory is not taken by default.
    const MARGIN: usize;

    /// As it stands after `--device`.
    const NAME: &'static str;

    /// What it is, for people.
    fn describe(&self) -> String;

    /// What the bits of results depend on.
    fn arithmetic(&self) -> String {
        Self::NAME.into()
    }

    /// Processors that blocks are spread over.
    fn multiprocessors(&self) -> usize;

    /// Bytes of shared memory that a block can have.
    fn shared_bytes(&self) -> usize;

    /// True if this kernel may start here before the one in front of it is done.
    fn starts_early(&self, kernel: &'static str) -> bool;

    /// True if kernels can use wgmma and the copy engine here, as on Hopper.
    fn multiplies_wide(&self) -> bool;

    /// The address of a map of this matrix in device memory, for the copy engine. It lives as long as the device, and
    /// says nothing but what `shape` says: one whose matrix is gone serves the next one there.
    fn tile_map(&self, shape: TileShape) -> Result<u64>;

    /// The memory that there is, where that is known.
    fn room(&self) -> Option<Room>;

    /// Another queue of the same device.
    fn side(&self) -> Result<Self>;

    /// What is asked of this queue from now on happens after what was asked of `other` until now.
    fn after(&self, other: &Self) -> Result<()>;

    /// The address of `bytes` bytes, aligned to 16, which this queue sets to zero.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back, once all queues have done what they were asked for.
    ///
    /// # Safety
    /// `address` must come from `alloc(bytes)` of this device, must not have been freed, and no
    /// later launch may use it.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Copies to the device. May return before it has happened, but not before `source` is done
    /// with.
    ///
    /// # Safety
    /// `target` must be the address of at least as many bytes of this device.
    unsafe fn upload(&self, source: &[u8], target: u64) -> Result<()>;

    /// Copies from the device, waiting for all that was asked of this queue before.
    ///
    /// # Safety
    /// `source` must be the address of at least as many bytes of this device.
    unsafe fn download(&self, source: u64, target: &mut [u8]) -> Result<()>;

    /// True if each kernel is to be launched by itself, so that one at fault can be told.
    fn launches_one_by_one(&self) -> bool {
        false
    }
}
