// x · weightᵀ on tensor cores, for matmul, matmul_add, logits and logprobs.
//
// A sum over the inner dimension has ONE order, whatever kernel computes it and whatever rows
// share the batch: the dimension is cut into SLICES equal parts; each is added up from its start,
// 32 positions a time (two mma's); the parts are added in order. So a row gives the same bits
// alone, in a batch of 64 and in a prefill.
//
// Which positions share an mma is ours to choose, since a sum has no order within one mma: lane
// t of a quad takes the 8 neighbours 8t .. 8t + 7 of 32, one 16-byte load; its first 4 numbers go
// into the first mma, the others into the second, of both operands alike. The weights' rows are
// the mma's 16 rows, the batch's rows its 8 columns.
#pragma once

#include "common.cuh"

constexpr unsigned SLICES = 4;
constexpr unsigned DEPTH = 32;  // positions of the inner dimension that are taken together

// Whole steps of DEPTH in one slice.
__device__ inline unsigned slice_steps(unsigned inputs) {
  return div_up(div_up(inputs, DEPTH), SLICES);
}

// 8 numbers of a row from position `at` on; zeros beyond the row's end. Rows whose length is no
// multiple of 8 are not aligned and are read number by number.
__device__ inline uint4 load_eight(const bf16 *row, unsigned at, unsigned inputs) {
  if (inputs % 8 == 0) {
    return at < inputs ? load_once(row + at) : uint4{0, 0, 0, 0};
  }
  unsigned words[4];
  for (unsigned i = 0; i < 4; i++) {
    unsigned low = at + 2 * i < inputs ? row[at + 2 * i].bits : 0;
    unsigned high = at + 2 * i + 1 < inputs ? row[at + 2 * i + 1].bits : 0;
    words[i] = low | high << 16;
  }
  return uint4{words[0], words[1], words[2], words[3]};
}

// The two mma's of one step: `upper` and `lower` are the weights' rows g and g + 8.
__device__ inline void mma_step(float (&sums)[4], uint4 upper, uint4 lower, uint4 x) {
  mma(sums, {upper.x, lower.x, upper.y, lower.y}, {x.x, x.y});
  mma(sums, {upper.z, lower.z, upper.w, lower.w}, {x.z, x.w});
}

// ---- few rows: each weight is read once, from memory to registers ----
//
// grid: outputs / 16 x rows / (8 * TILES); block: SLICES warps, a slice each. Bound by the weights'
// bytes: AHEAD steps (2 x 16 bytes a thread each) are under way before the first is used.

constexpr unsigned FEW_THREADS = SLICES * 32;
constexpr unsigned FEW_OUTPUTS = 16;
constexpr unsigned AHEAD = 4;

// Calls store(row, output, sum) for all rows and outputs of the block.
template <unsigned TILES, class Store>
__device__ void product_few(const ProductParams &p, Store store) {
  SHARED(float, slices);  // [SLICES, FEW_OUTPUTS, TILES * 8]
  unsigned lane = threadIdx.x % 32, slice = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  unsigned first_output = blockIdx.x * FEW_OUTPUTS, first_row = blockIdx.y * TILES * 8;
  // Rows and outputs beyond the end repeat the last one; their sums are not stored.
  auto weight_row = [&](unsigned at) {
    return p.weight + size_t(min(first_output + at, p.outputs - 1)) * p.inputs;
  };
  const bf16 *upper_row = weight_row(group), *lower_row = weight_row(group + 8);
  const bf16 *x_rows[TILES];
  for (unsigned tile = 0; tile < TILES; tile++) {
    x_rows[tile] = p.x + size_t(min(first_row + tile * 8 + group, p.rows - 1)) * p.inputs;
  }
  unsigned steps = slice_steps(p.inputs), first = slice * steps;
  auto position = [&](unsigned step) { return (first + step) * DEPTH + quad * 8; };

  float sums[TILES][4] = {};
  uint4 upper[AHEAD], lower[AHEAD];
#pragma unroll
  for (unsigned i = 0; i < AHEAD; i++) {
    upper[i] = load_eight(upper_row, position(i), i < steps ? p.inputs : 0);
    lower[i] = load_eight(lower_row, position(i), i < steps ? p.inputs : 0);
  }
  for (unsigned start = 0; start < steps; start += AHEAD) {
#pragma unroll
    for (unsigned i = 0; i < AHEAD; i++) {
      unsigned step = start + i;
      if (step < steps) {
        for (unsigned tile = 0; tile < TILES; tile++) {
          mma_step(sums[tile], upper[i], lower[i],
                   load_eight(x_rows[tile], position(step), p.inputs));
        }
      }
      if (step + AHEAD < steps) {
        upper[i] = load_eight(upper_row, position(step + AHEAD), p.inputs);
        lower[i] = load_eight(lower_row, position(step + AHEAD), p.inputs);
      }
    }
  }

  constexpr unsigned WIDTH = TILES * 8;
  float *mine = slices + slice * FEW_OUTPUTS * WIDTH;
  for (unsigned tile = 0; tile < TILES; tile++) {
    for (unsigned i = 0; i < 4; i++) {
      unsigned output = group + i / 2 * 8, row = tile * 8 + 2 * quad + i % 2;
      mine[output * WIDTH + row] = sums[tile][i];
    }
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < FEW_OUTPUTS * WIDTH; i += blockDim.x) {
    unsigned row = first_row + i / FEW_OUTPUTS, output = first_output + i % FEW_OUTPUTS;
    const float *part = slices + i % FEW_OUTPUTS * WIDTH + i / FEW_OUTPUTS;
    float sum = part[0];
    for (unsigned other = 1; other < SLICES; other++) sum += part[other * FEW_OUTPUTS * WIDTH];
    if (row < p.rows && output < p.outputs) store(row, output, sum);
  }
}

// ---- many rows: tiles through shared memory ----
//
// grid: outputs / TILE x rows / TILE; block: 8 warps, 2 along the outputs by 4 along the rows;
// STAGES tiles of DEPTH positions are under way at a time. Bound by arithmetic.

constexpr unsigned TILE = 128;
constexpr unsigned STAGES = 4;
constexpr unsigned MANY_THREADS = 256;
constexpr unsigned WARP_OUTPUTS = 4;  // mma tiles of 16
constexpr unsigned WARP_ROWS = 4;     // mma tiles of 8

// A warp's part of the block's tile: sums[i][j] belongs to outputs 16 i and rows 8 j.
struct Tile {
  float sums[WARP_OUTPUTS][WARP_ROWS][4];

  // Where sums[i][j][part] lies in the matrix.
  __device__ static unsigned output(unsigned i, unsigned part) {
    unsigned warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4;
    return blockIdx.x * TILE + warp % 2 * 64 + i * 16 + part / 2 * 8 + group;
  }
  __device__ static unsigned row(unsigned j, unsigned part) {
    unsigned warp = threadIdx.x / 32, quad = threadIdx.x % 4;
    return blockIdx.y * TILE + warp / 2 * 32 + j * 8 + 2 * quad + part % 2;
  }
};

// Starts the copies of one step: TILE rows of weights, then TILE rows of x, 4 x 16 bytes each.
__device__ inline void start_step(const ProductParams &p, unsigned step, uint4 *stage) {
  for (unsigned i = threadIdx.x; i < 2 * TILE * 4; i += blockDim.x) {
    unsigned at = step * DEPTH + i % 4 * 8, line = i / 4 % TILE;
    bool weights = i < TILE * 4;
    unsigned row = (weights ? blockIdx.x : blockIdx.y) * TILE + line;
    bool inside = row < (weights ? p.outputs : p.rows) && at < p.inputs;
    const bf16 *from = (weights ? p.weight : p.x) + (inside ? size_t(row) * p.inputs : 0);
    if (p.inputs % 8 == 0) {
      copy_async(stage + i, from + (inside ? at : 0), inside);
    } else {
      stage[i] = inside ? load_eight(from, at, p.inputs) : uint4{0, 0, 0, 0};
    }
  }
}

__device__ inline void product_many(const ProductParams &p, Tile &total) {
  SHARED(uint4, stages);  // [STAGES, 2 (weights, x), TILE, 4]
  constexpr unsigned STAGE = 2 * TILE * 4;
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Within a stage, the lane's weights begin here, its x there. 8 lanes read 128 bytes in a row.
  unsigned weights_at = (warp % 2 * 64 + lane / 4) * 4 + lane % 4;
  unsigned x_at = (TILE + warp / 2 * 32 + lane / 4) * 4 + lane % 4;
  unsigned per_slice = slice_steps(p.inputs), steps = div_up(p.inputs, DEPTH);
  total = Tile{};
  Tile part{};
  for (unsigned step = 0; step < STAGES - 1; step++) {
    if (step < steps) start_step(p, step, stages + step * STAGE);
    copy_commit();
  }
  for (unsigned step = 0; step < steps; step++) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    unsigned next = step + STAGES - 1;
    if (next < steps) start_step(p, next, stages + next % STAGES * STAGE);
    copy_commit();

    const uint4 *stage = stages + step % STAGES * STAGE;
    uint4 x[WARP_ROWS];
#pragma unroll
    for (unsigned j = 0; j < WARP_ROWS; j++) x[j] = stage[x_at + j * 8 * 4];
#pragma unroll
    for (unsigned i = 0; i < WARP_OUTPUTS; i++) {
      uint4 upper = stage[weights_at + i * 16 * 4], lower = stage[weights_at + (i * 16 + 8) * 4];
#pragma unroll
      for (unsigned j = 0; j < WARP_ROWS; j++) mma_step(part.sums[i][j], upper, lower, x[j]);
    }
    if ((step + 1) % per_slice == 0 || step + 1 == steps) {
#pragma unroll
      for (unsigned i = 0; i < WARP_OUTPUTS; i++)
#pragma unroll
        for (unsigned j = 0; j < WARP_ROWS; j++)
#pragma unroll
          for (unsigned k = 0; k < 4; k++) {
            total.sums[i][j][k] += part.sums[i][j][k];
            part.sums[i][j][k] = 0;
          }
    }
  }
}

// Calls store(row, output, sum) for all rows and outputs of the block.
template <class Store>
__device__ void product_many(const ProductParams &p, Store store) {
  Tile tile;
  product_many(p, tile);
#pragma unroll
  for (unsigned i = 0; i < WARP_OUTPUTS; i++)
#pragma unroll
    for (unsigned j = 0; j < WARP_ROWS; j++)
#pragma unroll
      for (unsigned k = 0; k < 4; k++) {
        unsigned row = Tile::row(j, k), output = Tile::output(i, k);
        if (row < p.rows && output < p.outputs) store(row, output, tile.sums[i][j][k]);
      }
}
