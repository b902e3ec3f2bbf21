// logits += weight * (log softmax(tuned) - log softmax(untuned))
// grid: rows; block: THREADS; shared: one f32 per warp; moves 24 bytes per logit (tuned and untuned
// are read three times, mostly from the cache).
#include "common.cuh"

static __device__ float log_sum_exp(const float *values, unsigned count, float *scratch) {
  float most = -INFINITY;
#pragma unroll 8
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) most = fmaxf(most, values[i]);
  most = block_reduce<Max>(most, scratch);
  float sum = 0;
#pragma unroll 8
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += expf(values[i] - most);
  return most + logf(block_reduce<Add>(sum, scratch));
}

extern "C" __global__ void add_guidance(const AddGuidanceParams p) {
  SHARED(float, scratch);
  size_t first = size_t(blockIdx.x) * p.vocab;
  const float *tuned = p.tuned + first, *untuned = p.untuned + first;
  float shift = log_sum_exp(untuned, p.vocab, scratch) - log_sum_exp(tuned, p.vocab, scratch);
#pragma unroll 8
  for (unsigned i = threadIdx.x; i < p.vocab; i += blockDim.x) {
    p.logits[first + i] += p.weight * (tuned[i] - untuned[i] + shift);
  }
}
