// out = (x - mean) / sqrt(var + eps) * weight + bias
// grid: rows; block: THREADS; shared: one f32 per warp; moves 4 + 2 bytes per number (the later
// readings of x come from the cache). Two passes: the variance is of differences from the mean.
#include "common.cuh"

extern "C" __global__ void layer_norm(const LayerNormParams p) {
  SHARED(float, scratch);
  const float *x = p.x + size_t(blockIdx.x) * p.width;
  bf16 *out = p.out + size_t(blockIdx.x) * p.width;
  float sum = 0;
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) sum += x[i];
  float mean = block_reduce<Add>(sum, scratch) / p.width;
  float squares = 0;
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) {
    squares += (x[i] - mean) * (x[i] - mean);
  }
  float factor = 1 / sqrtf(block_reduce<Add>(squares, scratch) / p.width + p.eps);
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) {
    out[i] = to_bf16((x[i] - mean) * factor * p.weight[i] + p.bias[i]);
  }
}
