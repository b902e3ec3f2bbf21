//! CUDA graphs: many launches that are started as one.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

use super::replay::Step;

type Result<T> = std::result::Result<T, DriverError>;

/// A graph of kernels that run one after another, ready to be started.
pub struct Graph {
    exec: sys::CUgraphExec,
    /// What it was made of: its nodes name those of `exec`.
    _template: Template,
    nodes: Vec<sys::CUgraphNode>,
}

// SAFETY: CUDA's handles may be used from any thread that has the context set.
unsafe impl Send for Graph {}

/// A graph as it is before it can be started.
struct Template(sys::CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: nobody else has it. An error can only be that of an earlier launch.
        let _ = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

impl Graph {
    /// Records launches of these functions, each after the one before; one that may start early begins
    /// once all blocks of the one before let it.
    ///
    /// # Safety
    /// The context must be set, and the steps' parameters those of the functions.
    pub unsafe fn record(steps: &[(sys::CUfunction, &Step)]) -> Result<Self> {
        let mut graph = ptr::null_mut();
        // SAFETY: as the caller vouches.
        unsafe { sys::cuGraphCreate(&raw mut graph, 0) }.result()?;
        let template = Template(graph);
        let mut nodes: Vec<sys::CUgraphNode> = Vec::with_capacity(steps.len());
        for &(function, step) in steps {
            let mut node = ptr::null_mut();
            with_params(function, step, |params| {
                // SAFETY: as the caller vouches; parameters are copied at once.
                unsafe {
                    sys::cuGraphAddKernelNode_v2(&raw mut node, template.0, ptr::null(), 0, params)
                }
            })?;
            if let Some(before) = nodes.last() {
                let edge = edge(step.launch.early);
                let (from, to, edge) = (ptr::from_ref(before), &raw const node, &raw const edge);
                // SAFETY: both nodes are the graph's; the three lists have one item each.
                unsafe { sys::cuGraphAddDependencies_v2(template.0, from, to, edge, 1) }
                    .result()?;
            }
            nodes.push(node);
        }
        let mut exec = ptr::null_mut();
        // SAFETY: the graph was just made.
        unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, template.0, 0) }.result()?;
        Ok(Self { exec, _template: template, nodes })
    }

    /// Gives a kernel other parameters, from the next start on.
    ///
    /// # Safety
    /// As [`Graph::record`], with the function that the graph has there.
    pub unsafe fn change(
        &self,
        index: usize,
        function: sys::CUfunction,
        step: &Step,
    ) -> Result<()> {
        with_params(function, step, |params| {
            // SAFETY: as the caller vouches; the node's own graph still is there.
            unsafe { sys::cuGraphExecKernelNodeSetParams_v2(self.exec, self.nodes[index], params) }
        })
    }

    /// Starts the graph on a stream.
    ///
    /// # Safety
    /// The context must be set, the stream one of it, and all addresses in the parameters valid.
    pub unsafe fn start(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: as the caller vouches.
        unsafe { sys::cuGraphLaunch(self.exec, stream) }.result()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; one that is running is destroyed once it is done.
        let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}

/// What a launch waits for: the end of the one before it, or, if it may start early, that all blocks of
/// the one before let it.
fn edge(early: bool) -> sys::CUgraphEdgeData {
    let (port, kind) = if early {
        let kind = sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC;
        (sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC, kind)
    } else {
        let kind = sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_DEFAULT;
        (sys::CU_GRAPH_KERNEL_NODE_PORT_DEFAULT, kind)
    };
    sys::CUgraphEdgeData { from_port: port as u8, to_port: 0, type_: kind as u8, reserved: [0; 5] }
}

fn with_params(
    func: sys::CUfunction,
    step: &Step,
    call: impl FnOnce(*const sys::CUDA_KERNEL_NODE_PARAMS) -> sys::CUresult,
) -> Result<()> {
    let [x, y, z] = step.launch.grid;
    let mut arguments: [*mut c_void; 1] = [step.params().cast_mut()];
    let params = sys::CUDA_KERNEL_NODE_PARAMS {
        func,
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: step.launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: step.launch.shared_bytes as u32,
        kernelParams: arguments.as_mut_ptr(),
        extra: ptr::null_mut(),
        kern: ptr::null_mut(),
        ctx: ptr::null_mut(),
    };
    call(&raw const params).result()
}
