// out[e] = log softmax(x[r] · headᵀ)[targets[e]] for each entry e of each row r, with no
// [rows, vocab] in memory
//
// logprobs_narrow, logprobs_large: largest logit and sum of e^(logit - largest) of each row over each
// 128 tokens of the vocabulary, and the targets' logits where they pass by. Both have warps of 64
// outputs, so a row's bits are the same.
// grid, block, shared: see product.cuh (many rows); moves 2 bytes per weight.
// logprobs: the tiles of a row in a fixed order. grid: rows; block: THREADS.
#include "product.cuh"

namespace {
template <class T>
__device__ __forceinline__ void sum_tiles(const LogprobsParams &p) {
  static_assert(T::OUTPUTS == 128 && T::WARPS_ALONG == 2, "a row's bits are those of any tiling");
  Sums<T> tile;
  product_many(p.product, tile);
  // The stages' memory serves again, once all warps are done with it: [2 (warps), ROWS].
  SHARED(float, scratch);
  float *maxima = scratch, *sums = scratch + 2 * T::ROWS;
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  copy_wait<0>();
  __syncthreads();
#pragma unroll
  for (unsigned j = 0; j < T::WIDE; j++) {
#pragma unroll
    for (unsigned side = 0; side < 2; side++) {
      unsigned row = T::row(j, side);
      float most = -INFINITY;
#pragma unroll
      for (unsigned i = 0; i < T::HIGH; i++) {
#pragma unroll
        for (unsigned k = side; k < 4; k += 2) {
          unsigned output = T::output(i, k);
          if (output >= p.product.outputs) tile.of[i][j][k] = -INFINITY;
          most = fmaxf(most, tile.of[i][j][k]);
        }
      }
      if (row < p.product.rows) {
        for (unsigned at = p.starts[row]; at < p.starts[row + 1]; at++) {
          unsigned entry = p.entries[at], target = p.targets[entry];
#pragma unroll
          for (unsigned i = 0; i < T::HIGH; i++) {
#pragma unroll
            for (unsigned k = side; k < 4; k += 2) {
              if (T::output(i, k) == target) p.out[entry] = tile.of[i][j][k];
            }
          }
        }
      }
      // Lanes of one quad position hold one row between them.
      for (unsigned distance = 4; distance < 32; distance *= 2) {
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, distance));
      }
      float sum = 0;
#pragma unroll
      for (unsigned i = 0; i < T::HIGH; i++) {
#pragma unroll
        for (unsigned k = side; k < 4; k += 2) {
          // Not fused with expf's last product in one kernel and perhaps not in the other.
          if (most > -INFINITY) sum = __fadd_rn(sum, expf(tile.of[i][j][k] - most));
        }
      }
      for (unsigned distance = 4; distance < 32; distance *= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, distance);
      }
      if (lane / 4 == 0) {
        unsigned line = row - blockIdx.y * T::ROWS;
        maxima[warp % 2 * T::ROWS + line] = most;
        sums[warp % 2 * T::ROWS + line] = sum;
      }
    }
  }
  __syncthreads();
  unsigned row = blockIdx.y * T::ROWS + threadIdx.x;
  if (threadIdx.x < T::ROWS && row < p.product.rows) {
    float a = maxima[threadIdx.x], b = maxima[T::ROWS + threadIdx.x];
    // The first half of a tile is never empty, so `most` is a number (or the model is broken).
    float most = fmaxf(a, b);
    size_t at = size_t(row) * p.tiles + blockIdx.x;
    p.maxima[at] = most;
    float second = __fmul_rn(sums[T::ROWS + threadIdx.x], expf(b - most));
    p.sums[at] = fmaf(sums[threadIdx.x], expf(a - most), second);
  }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(Narrow::THREADS, Narrow::RESIDENT)
    logprobs_narrow(const LogprobsParams p) { sum_tiles<Narrow>(p); }
extern "C" __global__ void __launch_bounds__(Large::THREADS, Large::RESIDENT)
    logprobs_large(const LogprobsParams p) { sum_tiles<Large>(p); }

extern "C" __global__ void logprobs(const LogprobsParams p) {
  SHARED(float, scratch);
  const float *maxima = p.maxima + size_t(blockIdx.x) * p.tiles;
  const float *sums = p.sums + size_t(blockIdx.x) * p.tiles;
  float most = -INFINITY;
  for (unsigned i = threadIdx.x; i < p.tiles; i += blockDim.x) most = fmaxf(most, maxima[i]);
  most = block_reduce<Max>(most, scratch);
  float sum = 0;
  for (unsigned i = threadIdx.x; i < p.tiles; i += blockDim.x) {
    sum += sums[i] * expf(maxima[i] - most);
  }
  sum = block_reduce<Add>(sum, scratch);
  unsigned end = p.starts[blockIdx.x + 1];
  for (unsigned at = p.starts[blockIdx.x] + threadIdx.x; at < end; at += blockDim.x) {
    unsigned entry = p.entries[at];
    p.out[entry] = p.out[entry] - most - logf(sum);
  }
}
