// out[e] = log softmax(x[r] · headᵀ)[targets[e]] for each entry e of each row r, with no
// [rows, vocab] in memory
//
// logprobs_tiles: largest logit and sum of e^(logit - largest) of each row over each TILE of the
// vocabulary, and the targets' logits where they pass by.
// grid, block, shared: see product.cuh (many rows); moves 2 bytes per weight.
// logprobs: the tiles of a row in a fixed order. grid: rows; block: THREADS.
#include "product.cuh"

extern "C" __global__ void __launch_bounds__(MANY_THREADS, 1)
    logprobs_tiles(const LogprobsParams p) {
  Tile tile;
  product_many(p.product, tile);
  // The stages' memory serves again, once all warps are done with it: [2 (warps), TILE rows].
  SHARED(float, scratch);
  float *maxima = scratch, *sums = scratch + 2 * TILE;
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  copy_wait<0>();
  __syncthreads();
#pragma unroll
  for (unsigned j = 0; j < WARP_ROWS; j++) {
#pragma unroll
    for (unsigned side = 0; side < 2; side++) {
      unsigned row = Tile::row(j, side);
      float most = -INFINITY;
#pragma unroll
      for (unsigned i = 0; i < WARP_OUTPUTS; i++) {
#pragma unroll
        for (unsigned k = side; k < 4; k += 2) {
          unsigned output = Tile::output(i, k);
          if (output >= p.product.outputs) tile.sums[i][j][k] = -INFINITY;
          most = fmaxf(most, tile.sums[i][j][k]);
        }
      }
      if (row < p.product.rows) {
        for (unsigned at = p.starts[row]; at < p.starts[row + 1]; at++) {
          unsigned entry = p.entries[at], target = p.targets[entry];
#pragma unroll
          for (unsigned i = 0; i < WARP_OUTPUTS; i++) {
#pragma unroll
            for (unsigned k = side; k < 4; k += 2) {
              if (Tile::output(i, k) == target) p.out[entry] = tile.sums[i][j][k];
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
      for (unsigned i = 0; i < WARP_OUTPUTS; i++) {
#pragma unroll
        for (unsigned k = side; k < 4; k += 2) {
          if (most > -INFINITY) sum += expf(tile.sums[i][j][k] - most);
        }
      }
      for (unsigned distance = 4; distance < 32; distance *= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, distance);
      }
      if (lane / 4 == 0) {
        unsigned line = row - blockIdx.y * TILE;
        maxima[warp % 2 * TILE + line] = most;
        sums[warp % 2 * TILE + line] = sum;
      }
    }
  }
  __syncthreads();
  unsigned row = blockIdx.y * TILE + threadIdx.x;
  if (threadIdx.x < TILE && row < p.product.rows) {
    float a = maxima[threadIdx.x], b = maxima[TILE + threadIdx.x];
    // The first half of a tile is never empty, so `most` is a number (or the model is broken).
    float most = fmaxf(a, b);
    size_t at = size_t(row) * p.tiles + blockIdx.x;
    p.maxima[at] = most;
    p.sums[at] = sums[threadIdx.x] * expf(a - most) + sums[TILE + threadIdx.x] * expf(b - most);
  }
}

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
