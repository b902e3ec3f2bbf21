// out = silu(gate) * up
// grid: rows x blocks of a row; block: THREADS; moves 6 bytes per number.
#include "common.cuh"

extern "C" __global__ void silu_gate(const SiluGateParams p) {
  const bf16 *gate = p.gate_up + size_t(blockIdx.x) * 2 * p.width;
  bf16 *out = p.out + size_t(blockIdx.x) * p.width;
  unsigned stride = gridDim.y * blockDim.x;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += stride) {
    float x = to_float(gate[i]);
    out[i] = to_bf16(x / (1 + expf(-x)) * to_float(gate[p.width + i]));
  }
}
