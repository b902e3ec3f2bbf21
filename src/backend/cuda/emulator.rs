//! The same kernels on the CPU, one fiber per CUDA thread: see kernels/README.md.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Device, Launch, TileShape};
use super::lazy::Queues;
use super::params::TileMap;
use super::replay::{Launcher, Step};
use crate::backend::Room;
use crate::backend::cpu::{HOST_MARGIN, host_room};
use crate::error::{Error, Result};

/// An H100's shared memory for one block, the most that kernels/emulator/ has room for.
const SHARED_BYTES: usize = 227 << 10;

type Run = unsafe extern "C" fn(*const c_void);

/// One row of the table that build.rs makes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kernel {
    name: *const c_char,
    run: Option<Run>,
    params_bytes: usize,
    early: bool,
}

unsafe extern "C" {
    /// Ends with a row without a name.
    static trimtab_emulator_kernels: [Kernel; super::device::KERNELS.len()];
    fn trimtab_emulator_begin(
        kernel: *const c_char,
        run: Option<Run>,
        early: bool,
        params: *const c_void,
        grid: *const u32,
        threads: u32,
        shared_bytes: usize,
        seed: u64,
        ahead: bool,
    ) -> *mut c_void;
    fn trimtab_emulator_finish(begun: *mut c_void) -> u64;
    fn trimtab_emulator_alloc(bytes: usize) -> *mut c_void;
    fn trimtab_emulator_free(memory: *mut c_void, bytes: usize);
}

/// Bytes of uploads that a queue holds until it is waited for.
const STAGING_BYTES: usize = 8 << 20;

/// Buffers up to this size are full of NaNs until their queue has cleared them, as on a GPU; larger
/// ones come as zeros from the system, so that a mostly empty cache costs nothing.
const POISONED_BYTES: usize = 1 << 20;

/// Proves the kernels' logic on machines without a GPU; not meant to be fast. One of its queues:
/// what is asked of them is done only when somebody waits, in a shuffled order.
pub struct Emulator {
    machine: Arc<Machine>,
    /// Of the machine's queues.
    queue: usize,
    /// Bytes uploaded since this queue was last waited for.
    staged: AtomicUsize,
    shared_bytes: usize,
    /// It stands in for a GPU that has Hopper's own instructions.
    wide: bool,
}

/// What all queues of an emulator have in common.
struct Machine {
    kernels: HashMap<&'static str, Kernel>,
    seed: u64,
    state: Mutex<State>,
    copied_bytes: AtomicU64,
}

struct State {
    queues: Queues<Task>,
    launches: u64,
    maps: HashMap<TileShape, Box<TileMap>>,
}

enum Task {
    Launch(Asked),
    Write { bytes: Vec<u8>, target: u64 },
    Clear { target: u64, bytes: usize },
}

/// A launch that was asked for.
struct Asked {
    kernel: Kernel,
    launch: Launch,
    params: Vec<Aligned>,
    seed: u64,
}

/// A launch that has begun, with the parameters that it reads.
struct Begun {
    handle: *mut c_void,
    _params: Vec<Aligned>,
}

/// A piece of a kernel's parameters, as far apart as any of their fields may want it.
#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "kernels read it")]
struct Aligned([u8; 64]);

// SAFETY: the table's pointers are to constants.
unsafe impl Send for Machine {}
// SAFETY: as above; all else is behind a lock.
unsafe impl Sync for Machine {}

impl Emulator {
    /// An emulator that draws the order of threads and of queues from `seed`.
    pub fn new(seed: u64) -> Self {
        // SAFETY: the table has a row for each of KERNELS, in the same order.
        let table = unsafe { &trimtab_emulator_kernels };
        let kernels = table.iter().map(|kernel| {
            // SAFETY: names are string literals.
            let name = unsafe { CStr::from_ptr(kernel.name) };
            (name.to_str().expect("kernels have ASCII names"), *kernel)
        });
        let kernels = kernels.collect();
        let state =
            Mutex::new(State { queues: Queues::new(seed), launches: 0, maps: HashMap::new() });
        Self::open(Arc::new(Machine { kernels, seed, state, copied_bytes: AtomicU64::new(0) }))
    }

    /// Bytes that kernels have read by asynchronous copies, in all that was waited for so far: to be
    /// held against what they should read.
    pub fn copied_bytes(&self) -> u64 {
        self.machine.copied_bytes.load(Ordering::Relaxed)
    }

    fn open(machine: Arc<Machine>) -> Self {
        let queue = machine.state().queues.open();
        Self { machine, queue, staged: AtomicUsize::new(0), shared_bytes: SHARED_BYTES, wide: true }
    }

    /// The same with less shared memory for a block, as on smaller GPUs, which have none of Hopper's instructions.
    #[must_use]
    pub fn with_shared_bytes(self, shared_bytes: usize) -> Self {
        let wide = self.wide && shared_bytes >= SHARED_BYTES;
        Self { shared_bytes: shared_bytes.min(SHARED_BYTES), wide, ..self }
    }

    /// The same without Hopper's own instructions, as on other GPUs.
    #[must_use]
    pub fn without_wide(self) -> Self {
        Self { wide: false, ..self }
    }

    fn wait(&self) {
        self.staged.store(0, Ordering::Relaxed);
        self.machine.state().queues.wait(self.queue, |tasks| self.machine.run(tasks));
    }

    fn ask(&self, task: Task) {
        self.machine.state().queues.ask(self.queue, task);
    }
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what was asked for: one task, and launches behind it that start early. Each of these begins
    /// before the launch in front of it goes on, and after the one before that is done.
    fn run(&self, tasks: Vec<Task>) {
        let mut begun: Option<Begun> = None;
        for task in tasks {
            match task {
                Task::Launch(asked) => {
                    let next = begin(asked, begun.is_some());
                    self.finish(begun.replace(next));
                }
                // SAFETY: who uploaded it vouches for the target's size.
                Task::Write { bytes, target } => unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), target as *mut u8, bytes.len());
                },
                // SAFETY: the allocation has at least so many bytes.
                Task::Clear { target, bytes } => unsafe {
                    std::ptr::write_bytes(target as *mut u8, 0, bytes);
                },
            }
        }
        self.finish(begun);
    }

    /// Runs what is left of a launch.
    fn finish(&self, begun: Option<Begun>) {
        if let Some(begun) = begun {
            // SAFETY: it has begun on this thread, and ends once.
            let copied = unsafe { trimtab_emulator_finish(begun.handle) };
            self.copied_bytes.fetch_add(copied, Ordering::Relaxed);
        }
    }
}

/// Begins a launch: if `ahead` of one that is not done, some of its blocks run up to where they wait.
fn begin(asked: Asked, ahead: bool) -> Begun {
    let Asked { kernel, launch, params, seed } = asked;
    // SAFETY: who launched it vouches for the parameters, which live until it is finished; their size is
    // the struct's, and what they point to is freed only after all queues were waited for.
    let handle = unsafe {
        trimtab_emulator_begin(
            kernel.name,
            kernel.run,
            kernel.early,
            params.as_ptr().cast(),
            launch.grid.as_ptr(),
            launch.threads,
            launch.shared_bytes,
            seed,
            ahead,
        )
    };
    Begun { handle, _params: params }
}

impl Device for Emulator {
    const MARGIN: usize = HOST_MARGIN;
    const NAME: &'static str = "emulator";

    fn describe(&self) -> String {
        format!("emulator (seed {})", self.machine.seed)
    }

    /// Few, so that tiny tests take all paths.
    fn multiprocessors(&self) -> usize {
        4
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn starts_early(&self, kernel: &'static str) -> bool {
        self.machine.kernels[kernel].early
    }

    fn multiplies_wide(&self) -> bool {
        self.wide
    }

    fn tile_map(&self, shape: TileShape) -> Result<u64> {
        let TileShape { address, inputs, rows, box_rows, twin } = shape;
        let mut state = self.machine.state();
        let map = state.maps.entry(shape).or_insert_with(|| {
            // As kernels/emulator/hopper.cpp reads it.
            let mut words = [0; 16];
            let numbers = [inputs, rows, box_rows].map(|number| number as u64);
            words[0] = address;
            words[1..4].copy_from_slice(&numbers);
            words[4] = twin.unwrap_or(0);
            Box::new(TileMap { words })
        });
        Ok((&raw const **map) as u64)
    }

    fn room(&self) -> Option<Room> {
        host_room()
    }

    fn side(&self) -> Result<Self> {
        Ok(Self {
            shared_bytes: self.shared_bytes,
            wide: self.wide,
            ..Self::open(self.machine.clone())
        })
    }

    fn after(&self, other: &Self) -> Result<()> {
        assert!(Arc::ptr_eq(&self.machine, &other.machine), "queues of one device");
        self.machine.state().queues.after(self.queue, other.queue);
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: any size will do; the result is checked.
        let memory = unsafe { trimtab_emulator_alloc(bytes) };
        if memory.is_null() {
            return Err(Error::DeviceMemory { place: "the emulator", bytes, free: None });
        }
        if bytes <= POISONED_BYTES {
            // SAFETY: the memory was just given, and nobody else knows of it.
            unsafe { std::ptr::write_bytes(memory.cast::<u8>(), 0xff, bytes) };
            self.ask(Task::Clear { target: memory as u64, bytes });
        }
        Ok(memory as u64)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        self.machine.state().queues.wait_for_all(|tasks| self.machine.run(tasks));
        // SAFETY: the caller vouches for it, and nothing is left to do that could use it.
        unsafe { trimtab_emulator_free(address as *mut c_void, bytes) }
    }

    unsafe fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        if self.staged.fetch_add(source.len(), Ordering::Relaxed) + source.len() > STAGING_BYTES {
            self.wait();
        }
        self.ask(Task::Write { bytes: source.to_vec(), target });
        Ok(())
    }

    unsafe fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        self.wait();
        let from = source as *const u8;
        // SAFETY: the caller vouches for the source's size; memory of the device is not the host's.
        unsafe { std::ptr::copy_nonoverlapping(from, target.as_mut_ptr(), target.len()) }
        Ok(())
    }
}

impl Launcher for Emulator {
    type Graph = Vec<Step>;

    unsafe fn launch(&self, step: &Step) -> Result<()> {
        let Step { launch, bytes, .. } = *step;
        let kernel = self.machine.kernels[launch.kernel];
        assert_eq!(bytes, kernel.params_bytes, "{}'s parameters", launch.kernel);
        let mut copy = vec![Aligned([0; 64]); bytes.div_ceil(64)];
        // SAFETY: there are so many bytes of parameters; the copy has at least as many.
        unsafe {
            let from = step.params().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr().cast(), bytes);
        }
        let mut state = self.machine.state();
        let seed = self.machine.seed.wrapping_add(state.launches << 16);
        state.launches += 1;
        let task = Task::Launch(Asked { kernel, launch, params: copy, seed });
        if launch.early {
            state.queues.ask_early(self.queue, task);
        } else {
            state.queues.ask(self.queue, task);
        }
        Ok(())
    }

    unsafe fn record(&self, steps: &[Step]) -> Result<Vec<Step>> {
        Ok(steps.to_vec())
    }

    unsafe fn change(&self, graph: &mut Vec<Step>, index: usize, step: &Step) -> Result<()> {
        graph[index] = step.clone();
        Ok(())
    }

    unsafe fn start(&self, graph: &Vec<Step>, _: &[Step]) -> Result<()> {
        // SAFETY: the caller vouches for all of them.
        graph.iter().try_for_each(|step| unsafe { self.launch(step) })
    }
}
