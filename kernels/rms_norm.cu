// out = x / sqrt(mean(x^2) + eps) * weight
// grid: rows; block: THREADS; shared: one f32 per warp; moves 4 + 2 bytes per number (the second
// reading of x comes from the cache).
#include "common.cuh"

extern "C" __global__ void rms_norm(const RmsNormParams p) {
  SHARED(float, scratch);
  const float *x = p.x + size_t(blockIdx.x) * p.width;
  bf16 *out = p.out + size_t(blockIdx.x) * p.width;
  float squares = 0;
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) squares += x[i] * x[i];
  squares = block_reduce<Add>(squares, scratch);
  float factor = 1 / sqrtf(squares / p.width + p.eps);
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) {
    out[i] = to_bf16(x[i] * factor * p.weight[i]);
  }
}
