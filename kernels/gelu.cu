// x = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), in place
// grid: enough for one number a thread; block: THREADS; moves 4 bytes per number.
#include "common.cuh"

extern "C" __global__ void gelu(const GeluParams p) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.len) return;
  float x = to_float(p.x[i]);
  float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  p.x[i] = to_bf16(0.5f * x * (1 + tanhf(inner)));
}
