//! A real GPU, through libcuda, which is looked for when the program runs.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys;

use super::device::{Device, KERNELS, Kernel, Launch, TileShape};
use super::gpus::{Gpu, gpus, refusal, refused, unavailable};
use super::graph::Graph;
use super::replay::{Launcher, Step};
use super::tile_map::TileMaps;
use crate::backend::Room;
use crate::error::{Error, Result};

/// The kernels for GPUs, where the build found nvcc.
#[cfg(has_cuda_kernels)]
static FATBIN: Option<&[u8]> =
    Some(&Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"))).0);
#[cfg(not(has_cuda_kernels))]
static FATBIN: Option<&[u8]> = None;

/// Why there are no kernels, where there are none.
pub fn missing_kernels() -> Option<&'static str> {
    FATBIN
        .is_none()
        .then_some("this trimtab was built without nvcc; run tools/toolchain.sh and build again")
}

/// Nothing says how an image must lie in memory; as anything may that is read by words.
#[cfg(has_cuda_kernels)]
#[repr(C, align(64))]
struct Aligned<const BYTES: usize>([u8; BYTES]);

/// Hopper's compute capability. The code for it alone has wgmma, and waits for the kernel in front; all other GPUs get code
/// that has neither.
const HOPPER: (i32, i32) = (9, 0);

/// Bytes of page-locked memory through which a queue's copies go.
const STAGING_BYTES: usize = 8 << 20;

/// A GPU with the kernels loaded, which its queues share.
struct Opened {
    gpu: Gpu,
    multiprocessors: usize,
    /// Bytes of shared memory that a block can have.
    shared_bytes: usize,
    context: sys::CUcontext,
    /// As whoever looks for the launch at fault asks for: no graphs.
    one_by_one: bool,
    functions: HashMap<&'static str, Function>,
    maps: Mutex<TileMaps>,
}

/// A kernel as it was loaded.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    early: bool,
}

/// The first GPU: one stream on it.
pub struct Driver {
    opened: Arc<Opened>,
    stream: sys::CUstream,
    /// Recorded anew each time that another queue is to wait for this one.
    event: sys::CUevent,
    staging: Mutex<Staging>,
    /// What was launched last, for errors that show only later.
    last: Mutex<Option<Launch>>,
}

/// Page-locked memory, used from its start until the next wait.
struct Staging {
    memory: *mut u8,
    used: usize,
}

// SAFETY: CUDA's handles may be used from any thread that has the context set, which every method
// does first; the staging memory is behind a lock.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}
// SAFETY: as above.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Opens the first GPU and loads the kernels.
    pub fn open() -> Result<Self> {
        let Some(fatbin) = FATBIN else {
            return Err(unavailable(missing_kernels().unwrap_or_default()));
        };
        let gpus = gpus()?;
        let Some(gpu) = gpus.into_iter().next() else {
            return Err(unavailable("the driver knows of no GPU"));
        };
        if gpu.capability < (8, 0) {
            let (major, minor) = gpu.capability;
            let reason = format!(
                "{} has compute capability {major}.{minor}; 8.0 or later is needed",
                gpu.name
            );
            return Err(unavailable(reason));
        }
        let opening = || refused(format!("opening {}", gpu.name));
        let device = result::device::get(gpu.ordinal).map_err(opening())?;
        // SAFETY: the device exists; the context lives as long as the process.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(opening())?;
        // SAFETY: the context was just made.
        unsafe { result::ctx::set_current(context) }.map_err(opening())?;
        let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: the device exists.
        let count = unsafe { result::device::get_attribute(device, which) }.map_err(opening())?;
        let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device exists.
        let shared = unsafe { result::device::get_attribute(device, which) }.map_err(opening())?;
        // For measuring: without it every kernel waits for the one in front to be done.
        let early = std::env::var_os("TRIMTAB_EARLY").is_none_or(|value| value != "0");
        let functions = load(fatbin, shared, early && gpu.capability == HOPPER)?;
        let (multiprocessors, shared_bytes) = (count as usize, shared as usize);
        let one_by_one = std::env::var_os("CUDA_LAUNCH_BLOCKING").is_some_and(|value| value == "1");
        let maps = Mutex::default();
        let opened =
            Opened { multiprocessors, shared_bytes, gpu, context, one_by_one, functions, maps };
        Self::queue(Arc::new(opened))
    }

    /// One more queue of a GPU.
    fn queue(opened: Arc<Opened>) -> Result<Self> {
        opened.enter()?;
        let opening = || refused(format!("opening a queue of {}", opened.gpu.name));
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create(kind).map_err(opening())?;
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = result::event::create(untimed).map_err(opening())?;
        // SAFETY: the memory is used by this queue alone, and freed after its last copy.
        let memory = unsafe { result::malloc_host(STAGING_BYTES, 0) }.map_err(opening())?;
        let staging = Mutex::new(Staging { memory: memory.cast(), used: 0 });
        Ok(Self { opened, stream, event, staging, last: Mutex::default() })
    }

    fn enter(&self) -> Result<()> {
        self.opened.enter()
    }

    fn function(&self, launch: &Launch) -> sys::CUfunction {
        self.opened.functions[launch.kernel].handle
    }

    fn launched(&self, launch: Launch) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(launch);
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, staging: &mut Staging, what: &str) -> Result<()> {
        staging.used = 0;
        // SAFETY: the stream lives as long as self.
        let waited = unsafe { result::stream::synchronize(self.stream) };
        waited.map_err(|error| match self.last() {
            Some(launch) => refusal(
                format!(
                    "{what} after {launch} (or an earlier one: with CUDA_LAUNCH_BLOCKING=1 set it \
                     is the one at fault)"
                ),
                error,
            ),
            None => refusal(what, error),
        })
    }

    fn last(&self) -> Option<Launch> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launcher for Driver {
    type Graph = Graph;

    unsafe fn launch(&self, step: &Step) -> Result<()> {
        self.enter()?;
        let Launch { early, grid: [x, y, z], threads, shared_bytes, .. } = step.launch;
        let mut early_start = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.stream,
            attrs: &raw mut early_start,
            numAttrs: u32::from(early),
        };
        let (function, nothing) = (self.function(&step.launch), std::ptr::null_mut());
        let mut arguments = [step.params().cast_mut()];
        // SAFETY: the caller vouches for the parameters, which the driver copies at once.
        let result = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), nothing)
        };
        self.launched(step.launch);
        result.result().map_err(|error| refusal(format!("launching {}", step.launch), error))
    }

    unsafe fn record(&self, steps: &[Step]) -> Result<Graph> {
        self.enter()?;
        let steps: Vec<_> = steps.iter().map(|step| (self.function(&step.launch), step)).collect();
        // SAFETY: the context is set; the caller vouches for the parameters.
        unsafe { Graph::record(&steps) }
            .map_err(refused(format!("recording a graph of {} kernels", steps.len())))
    }

    unsafe fn change(&self, graph: &mut Graph, index: usize, step: &Step) -> Result<()> {
        self.enter()?;
        // SAFETY: as above.
        unsafe { graph.change(index, self.function(&step.launch), step) }
            .map_err(|error| refusal(format!("changing {} in a graph", step.launch), error))
    }

    unsafe fn start(&self, graph: &Graph, steps: &[Step]) -> Result<()> {
        self.enter()?;
        // SAFETY: as above.
        let result = unsafe { graph.start(self.stream) };
        if let Some(step) = steps.last() {
            self.launched(step.launch);
        }
        result.map_err(refused(format!("starting a graph of {} kernels", steps.len())))
    }
}

impl Opened {
    /// Makes the GPU's context the calling thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.map_err(refused("entering the context"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let memory = self.staging().memory;
        // SAFETY: this queue made them, nobody else has them, and its last copy is waited for. An
        // error can only be that of an earlier launch, which is reported elsewhere.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::free_host(memory.cast());
            let _ = result::event::destroy(self.event);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

/// All kernels of the fat binary, allowed `shared` bytes of dynamic shared memory; those marked so start
/// early if any may.
fn load(fatbin: &[u8], shared: i32, early: bool) -> Result<HashMap<&'static str, Function>> {
    // SAFETY: nvcc made the image; the module lives as long as the process.
    let module = unsafe { result::module::load_data(fatbin.as_ptr().cast()) };
    let module = module.map_err(refused("loading the kernels"))?;
    let find = |&Kernel { name, early: marked }: &Kernel| {
        let c_name = CString::new(name).expect("kernels have ASCII names");
        let refused = || refused(format!("loading the kernel {name}"));
        // SAFETY: the module was just loaded.
        let function = unsafe { result::module::get_function(module, c_name) }.map_err(refused())?;
        let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function was just found.
        unsafe { result::function::set_function_attribute(function, which, shared) }
            .map_err(refused())?;
        Ok((name, Function { handle: function, early: early && marked }))
    };
    KERNELS.iter().map(find).collect()
}

impl Device for Driver {
    /// For what the driver itself takes later, and for allocations that it rounds up.
    const MARGIN: usize = 20;
    const NAME: &'static str = "cuda";

    fn describe(&self) -> String {
        let Gpu { capability: (major, minor), memory_bytes, name, .. } = &self.opened.gpu;
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        format!("cuda ({name}, {gib:.0} GiB, sm_{major}{minor})")
    }

    fn arithmetic(&self) -> String {
        let (major, minor) = self.opened.gpu.capability;
        format!("{}, sm_{major}{minor}", Self::NAME)
    }

    fn multiprocessors(&self) -> usize {
        self.opened.multiprocessors
    }

    fn shared_bytes(&self) -> usize {
        self.opened.shared_bytes
    }

    fn starts_early(&self, kernel: &'static str) -> bool {
        self.opened.functions[kernel].early
    }

    fn multiplies_wide(&self) -> bool {
        self.opened.gpu.capability == HOPPER
    }

    fn tile_map(&self, shape: TileShape) -> Result<u64> {
        let mut maps = self.opened.maps.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter()?;
        // SAFETY: the context is set.
        unsafe { maps.get(shape) }.map_err(refused(format!("mapping {shape:?}")))
    }

    fn room(&self) -> Option<Room> {
        self.enter().ok()?;
        result::mem_get_info().ok().map(|(free, total)| Room { free, total })
    }

    fn side(&self) -> Result<Self> {
        Self::queue(self.opened.clone())
    }

    fn after(&self, other: &Self) -> Result<()> {
        self.enter()?;
        let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both queues live. The wait is for what the event was last recorded behind: where
        // two threads record it at the same time, for more than was asked for, never for less.
        unsafe {
            result::event::record(other.event, other.stream)
                .and_then(|()| result::stream::wait_event(self.stream, other.event, wait))
        }
        .map_err(refused("joining two queues"))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // SAFETY: a fresh allocation, cleared before anything else on the stream uses it.
        let memory = unsafe { result::malloc_sync(bytes.max(1)) };
        let address = memory.map_err(|error| match error.0 {
            sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = result::mem_get_info().ok().map(|(free, _)| free);
                Error::DeviceMemory { place: "the GPU", bytes, free }
            }
            _ => refused(format!("allocating {bytes} bytes"))(error),
        })?;
        // SAFETY: the allocation has at least `bytes` bytes.
        let cleared = unsafe { result::memset_d8_async(address, 0, bytes.max(1), self.stream) };
        cleared.map_err(|error| {
            // SAFETY: nobody was given it.
            unsafe { self.free(address, bytes) };
            refusal(format!("clearing {bytes} bytes"), error)
        })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        // An error here can only be that of an earlier launch, which is reported elsewhere.
        if self.enter().is_ok() {
            // SAFETY: the caller vouches for it.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        self.enter()?;
        let mut staging = self.staging();
        let mut target = target;
        for piece in source.chunks(STAGING_BYTES) {
            if staging.used + piece.len() > STAGING_BYTES {
                self.wait(&mut staging, "waiting for uploads")?;
            }
            // SAFETY: in bounds, and no copy under way uses this part of the staging memory: it is
            // used again only after a wait.
            let staged = unsafe {
                let to = staging.memory.add(staging.used);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
                std::slice::from_raw_parts(to.cast_const(), piece.len())
            };
            staging.used += piece.len();
            // SAFETY: the caller vouches for the target.
            unsafe { result::memcpy_htod_async(target, staged, self.stream) }
                .map_err(|error| refusal(format!("uploading {} bytes", piece.len()), error))?;
            target += piece.len() as u64;
        }
        Ok(())
    }

    unsafe fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        self.enter()?;
        let what = format!("downloading {} bytes", target.len());
        let mut staging = self.staging();
        let mut source = source;
        for piece in target.chunks_mut(STAGING_BYTES) {
            if staging.used + piece.len() > STAGING_BYTES {
                self.wait(&mut staging, &what)?;
            }
            // SAFETY: in bounds, and behind what copies under way still use.
            let staged = unsafe {
                let from = staging.memory.add(staging.used);
                std::slice::from_raw_parts_mut(from, piece.len())
            };
            // SAFETY: the caller vouches for the source; nobody looks before the wait.
            unsafe { result::memcpy_dtoh_async(&mut *staged, source, self.stream) }
                .map_err(|error| refusal(what.as_str(), error))?;
            self.wait(&mut staging, &what)?;
            piece.copy_from_slice(staged);
            source += piece.len() as u64;
        }
        Ok(())
    }

    fn launches_one_by_one(&self) -> bool {
        self.opened.one_by_one
    }
}
