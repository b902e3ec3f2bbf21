//! The same kernels on the CPU, one fiber per CUDA thread: see kernels/README.md.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use super::device::{Device, Launch};
use crate::backend::cpu::host_free_bytes;
use crate::error::{Error, Result};

type Run = unsafe extern "C" fn(*const c_void);

/// One row of the table that build.rs makes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kernel {
    name: *const c_char,
    run: Option<Run>,
    params_bytes: usize,
}

unsafe extern "C" {
    /// Ends with a row without a name.
    static trimtab_emulator_kernels: [Kernel; super::device::KERNELS.len()];
    fn trimtab_emulator_launch(
        kernel: *const c_char,
        run: Option<Run>,
        params: *const c_void,
        grid: *const u32,
        threads: u32,
        shared_bytes: usize,
        seed: u64,
    ) -> u64;
    fn trimtab_emulator_alloc(bytes: usize) -> *mut c_void;
    fn trimtab_emulator_free(memory: *mut c_void, bytes: usize);
}

/// Proves the kernels' logic on machines without a GPU; not meant to be fast.
pub struct Emulator {
    kernels: HashMap<&'static str, Kernel>,
    seed: u64,
    launches: AtomicU64,
    copied_bytes: AtomicU64,
}

// SAFETY: the table's pointers are to constants.
unsafe impl Send for Emulator {}
// SAFETY: as above; a launch's state belongs to the thread that launches.
unsafe impl Sync for Emulator {}

impl Emulator {
    /// An emulator that draws the order of threads from `seed`.
    pub fn new(seed: u64) -> Self {
        // SAFETY: the table has a row for each of KERNELS, in the same order.
        let table = unsafe { &trimtab_emulator_kernels };
        let kernels = table.iter().map(|kernel| {
            // SAFETY: names are string literals.
            let name = unsafe { CStr::from_ptr(kernel.name) };
            (name.to_str().expect("kernels have ASCII names"), *kernel)
        });
        let (launches, copied_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { kernels: kernels.collect(), seed, launches, copied_bytes }
    }

    /// Bytes that kernels have read by asynchronous copies so far, to be held against what they
    /// should read.
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes.load(Ordering::Relaxed)
    }
}

impl Device for Emulator {
    fn describe(&self) -> String {
        format!("emulator (seed {})", self.seed)
    }

    /// Few, so that tiny tests take all paths.
    fn multiprocessors(&self) -> usize {
        4
    }

    fn free_bytes(&self) -> Option<usize> {
        host_free_bytes()
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: any size will do; the result is checked.
        let memory = unsafe { trimtab_emulator_alloc(bytes) };
        if memory.is_null() {
            return Err(Error::DeviceMemory { place: "the emulator", bytes, free: None });
        }
        Ok(memory as u64)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: the caller vouches for it.
        unsafe { trimtab_emulator_free(address as *mut c_void, bytes) }
    }

    unsafe fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        // SAFETY: the caller vouches for the target's size; memory of the device is not the host's.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target as *mut u8, source.len()) }
        Ok(())
    }

    unsafe fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        let from = source as *const u8;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from, target.as_mut_ptr(), target.len()) }
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, params: *const c_void, bytes: usize) -> Result<()> {
        let kernel = self.kernels[launch.kernel];
        assert_eq!(bytes, kernel.params_bytes, "{}'s parameters", launch.kernel);
        let seed = self.seed.wrapping_add(self.launches.fetch_add(1, Ordering::Relaxed) << 16);
        // SAFETY: the caller vouches for the parameters; their size is the struct's.
        let copied = unsafe {
            trimtab_emulator_launch(
                kernel.name,
                kernel.run,
                params,
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared_bytes,
                seed,
            )
        };
        self.copied_bytes.fetch_add(copied, Ordering::Relaxed);
        Ok(())
    }
}
