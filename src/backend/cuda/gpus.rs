//! Which GPUs there are, and what libcuda says where something is refused.

use std::ffi::{CStr, c_void};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::error::{Error, Result};

/// The functions of libcuda that are used here; cudarc panics at one that is missing.
const FUNCTIONS: [&CStr; 41] = [
    c"cuInit",
    c"cuDeviceGetCount",
    c"cuDeviceGet",
    c"cuDeviceGetName",
    c"cuDeviceGetAttribute",
    c"cuDeviceTotalMem_v2",
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxSetCurrent",
    c"cuCtxSynchronize",
    c"cuModuleLoadData",
    c"cuModuleGetFunction",
    c"cuFuncSetAttribute",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamSynchronize",
    c"cuStreamWaitEvent",
    c"cuEventCreate",
    c"cuEventDestroy_v2",
    c"cuEventRecord",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemGetInfo_v2",
    c"cuMemHostAlloc",
    c"cuMemFreeHost",
    c"cuMemsetD8Async",
    c"cuMemcpyHtoD_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemcpyDtoHAsync_v2",
    c"cuTensorMapEncodeTiled",
    c"cuLaunchKernelEx",
    c"cuGraphCreate",
    c"cuGraphDestroy",
    c"cuGraphAddKernelNode_v2",
    c"cuGraphAddDependencies_v2",
    c"cuGraphInstantiateWithFlags",
    c"cuGraphExecKernelNodeSetParams_v2",
    c"cuGraphLaunch",
    c"cuGraphExecDestroy",
    c"cuGetErrorName",
    c"cuGetErrorString",
];

/// Why there is no GPU to be had.
pub fn unavailable(reason: impl Into<String>) -> Error {
    Error::DeviceUnavailable { device: "cuda", reason: reason.into() }
}

/// What libcuda said, and while doing what.
pub fn refused(what: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    |error| refusal(what, error)
}

pub fn refusal(what: impl Into<String>, error: DriverError) -> Error {
    Error::Cuda { what: what.into(), reason: explain(error) }
}

fn explain(error: DriverError) -> String {
    let said = match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => format!("{} ({})", name.to_string_lossy(), text.to_string_lossy()),
        _ => format!("error {}", error.0 as u32),
    };
    let advice = match error.0 {
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => {
            ": this libcuda is a stub for linking; take its folder out of LD_LIBRARY_PATH"
        }
        sys::CUresult::CUDA_ERROR_INVALID_IMAGE
        | sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            ": the kernels need a driver of 580 or later"
        }
        _ => "",
    };
    said + advice
}

/// One GPU that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, from 0.
    pub ordinal: i32,
    /// As its maker calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Memory in all.
    pub memory_bytes: usize,
}

/// Finds libcuda and all of its functions that are needed, and starts it.
fn start() -> Result<()> {
    // SAFETY: loading a system library by its own name.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("libcuda was not found: is the NVIDIA driver installed?"));
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    for function in FUNCTIONS {
        // SAFETY: only looked up, not called.
        if unsafe { library.get::<*const c_void>(function.to_bytes_with_nul()) }.is_err() {
            let name = function.to_string_lossy();
            return Err(unavailable(format!("libcuda has no {name}: is it a stub, or too old?")));
        }
    }
    result::init().map_err(|error| unavailable(format!("cuInit: {}", explain(error))))
}

/// All GPUs, or why there are none.
pub fn gpus() -> Result<Vec<Gpu>> {
    start()?;
    let count = result::device::get_count().map_err(refused("counting GPUs"))?;
    (0..count).map(|ordinal| describe(ordinal).map_err(refused("asking for a GPU"))).collect()
}

fn describe(ordinal: i32) -> std::result::Result<Gpu, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` was just given by the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    Ok(Gpu {
        ordinal,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device)? },
    })
}
