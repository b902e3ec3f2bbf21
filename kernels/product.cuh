// x · weightᵀ on tensor cores, for matmul and its kin, logits and logprobs.
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

constexpr unsigned SLICES = 8;
constexpr unsigned DEPTH = 32;  // positions of the inner dimension that are taken together

// Whole steps of DEPTH in one slice.
__device__ inline unsigned slice_steps(unsigned inputs) {
  return div_up(div_up(inputs, DEPTH), SLICES);
}

// Rows whose length is a multiple of 8 begin at multiples of 16 bytes; the others are read number by
// number.
constexpr unsigned CHUNK = 8;

// 8 numbers of a row from position `at` on; zeros beyond the row's end. What is read ONCE does not
// go to the L1, which is for what others of the processor read again.
template <bool ALIGNED, bool ONCE = true>
__device__ inline uint4 load_eight(const bf16 *row, unsigned at, unsigned inputs) {
  if constexpr (ALIGNED) {
    if (at >= inputs) return uint4{0, 0, 0, 0};
    return ONCE ? load_once(row + at) : load_again(row + at);
  } else {
    unsigned words[4];
    for (unsigned i = 0; i < 4; i++) {
      unsigned low = at + 2 * i < inputs ? row[at + 2 * i].bits : 0;
      unsigned high = at + 2 * i + 1 < inputs ? row[at + 2 * i + 1].bits : 0;
      words[i] = low | high << 16;
    }
    return uint4{words[0], words[1], words[2], words[3]};
  }
}

// The two mma's of one step: `upper` and `lower` are the weights' rows g and g + 8.
__device__ inline void mma_step(float (&sums)[4], uint4 upper, uint4 lower, uint4 x) {
  mma(sums, {upper.x, lower.x, upper.y, lower.y}, {x.x, x.y});
  mma(sums, {upper.z, lower.z, upper.w, lower.w}, {x.z, x.w});
}

// ---- whose sums: the rows of one matrix, or of two ----
//
// A block takes some of all lines of weights, 16 of which are an mma's.

// A line is a row.
struct One {
  static constexpr bool PAIR = false;
  const bf16 *weight;
  __device__ static unsigned output(unsigned line) { return line; }
  __device__ const bf16 *of(unsigned) const { return weight; }
};

// Two matrices of one shape take turns of 8 lines: so the sums of both for an output are one thread's.
struct Pair {
  static constexpr bool PAIR = true;
  const bf16 *first, *second;
  __device__ static unsigned output(unsigned line) { return line / 16 * 8 + line % 8; }
  __device__ const bf16 *of(unsigned line) const { return line % 16 < 8 ? first : second; }
};

// ---- few rows: each weight is read once, from memory to registers ----
//
// grid: lines / 16 x rows / (8 * TILES); block: SLICES warps, a slice each. Bound by the weights'
// bytes: 4 steps (2 x 16 bytes a thread each) are under way before the first is used. The rows of x
// are the same for all blocks of a processor, which find them in the L1.

constexpr unsigned FEW_THREADS = SLICES * 32;
constexpr unsigned FEW_LINES = 16;
// Blocks that a processor should hold at a time.
__host__ __device__ constexpr unsigned few_resident(unsigned tiles) { return tiles <= 2 ? 3 : 2; }

template <unsigned TILES, bool ALIGNED, class Weights, class Store>
__device__ __forceinline__ void product_few(const ProductParams &p, Weights weights, Store store) {
  SHARED(float, slices);  // [SLICES, FEW_LINES, TILES * 8]
  // Steps under way: as many of x as there are registers for.
  constexpr unsigned AHEAD = ALIGNED ? 4 : 1;
  constexpr unsigned X_AHEAD = !ALIGNED ? 1 : TILES == 1 ? 4 : TILES == 2 ? 2 : 1;
  unsigned lane = threadIdx.x % 32, slice = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  unsigned first_line = blockIdx.x * FEW_LINES, first_row = blockIdx.y * TILES * 8;
  // Rows and outputs beyond the end repeat the last one; their sums are not stored.
  auto weight_row = [&](unsigned at) {
    unsigned output = min(Weights::output(first_line + at), p.outputs - 1);
    return weights.of(first_line + at) + size_t(output) * p.inputs;
  };
  const bf16 *upper_row = weight_row(group), *lower_row = weight_row(group + 8);
  const bf16 *x_rows[TILES];
  for (unsigned tile = 0; tile < TILES; tile++) {
    x_rows[tile] = p.x + size_t(min(first_row + tile * 8 + group, p.rows - 1)) * p.inputs;
  }
  unsigned steps = slice_steps(p.inputs), first = slice * steps;
  uint4 upper[AHEAD], lower[AHEAD], x[X_AHEAD][TILES];
  auto load_weights = [&](unsigned step, unsigned i) {
    unsigned at = (first + step) * DEPTH + quad * 8, end = step < steps ? p.inputs : 0;
    upper[i] = load_eight<ALIGNED, true>(upper_row, at, end);
    lower[i] = load_eight<ALIGNED, true>(lower_row, at, end);
  };
  auto load_x = [&](unsigned step, unsigned i) {
    unsigned at = (first + step) * DEPTH + quad * 8, end = step < steps ? p.inputs : 0;
#pragma unroll
    for (unsigned tile = 0; tile < TILES; tile++) {
      x[i][tile] = load_eight<ALIGNED, false>(x_rows[tile], at, end);
    }
  };

  float sums[TILES][4] = {};
#pragma unroll
  for (unsigned i = 0; i < AHEAD; i++) load_weights(i, i);
#pragma unroll
  for (unsigned i = 0; i < X_AHEAD; i++) load_x(i, i);
  for (unsigned start = 0; start < steps; start += AHEAD) {
#pragma unroll
    for (unsigned i = 0; i < AHEAD; i++) {
      unsigned step = start + i;
      if (step < steps) {
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
          mma_step(sums[tile], upper[i], lower[i], x[i % X_AHEAD][tile]);
        }
      }
      if (step + AHEAD < steps) load_weights(step + AHEAD, i);
      if (step + X_AHEAD < steps) load_x(step + X_AHEAD, i % X_AHEAD);
    }
  }

  constexpr unsigned WIDTH = TILES * 8;
  float *mine = slices + slice * FEW_LINES * WIDTH;
#pragma unroll
  for (unsigned tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      unsigned line = group + i / 2 * 8, row = tile * 8 + 2 * quad + i % 2;
      mine[line * WIDTH + row] = sums[tile][i];
    }
  }
  __syncthreads();
  // Of a line and a row of the block.
  auto sum = [&](unsigned line, unsigned row) {
    const float *part = slices + line * WIDTH + row;
    float sum = part[0];
#pragma unroll
    for (unsigned other = 1; other < SLICES; other++) sum += part[other * FEW_LINES * WIDTH];
    return sum;
  };
  constexpr unsigned OUTPUTS = Weights::PAIR ? FEW_LINES / 2 : FEW_LINES;
  for (unsigned i = threadIdx.x; i < OUTPUTS * WIDTH; i += FEW_THREADS) {
    unsigned line = i % OUTPUTS, row = i / OUTPUTS, output = Weights::output(first_line + line);
    if (first_row + row >= p.rows || output >= p.outputs) continue;
    if constexpr (Weights::PAIR) {
      store(first_row + row, output, sum(line, row), sum(line + 8, row));
    } else {
      store(first_row + row, output, sum(line, row));
    }
  }
}

// Calls store(row, output, sum), of a pair of matrices store(row, output, first, second), for all rows and
// outputs of the block.
template <unsigned TILES, class Weights, class Store>
__device__ void product_few(const ProductParams &p, Weights weights, Store store) {
  if (p.inputs % CHUNK == 0) {
    product_few<TILES, true>(p, weights, store);
  } else {
    product_few<TILES, false>(p, weights, store);
  }
}

template <unsigned TILES, class Store>
__device__ void product_few(const ProductParams &p, Store store) {
  product_few<TILES>(p, One{p.weight}, store);
}

// ---- many rows: tiles through shared memory ----
//
// grid: lines / WEIGHTS x rows / ROWS; block: warps of WARP_WEIGHTS lines and 32 rows each.
// STAGES tiles of two steps are under way at a time. Bound by arithmetic, and by shared memory, of
// which a warp of 64 outputs reads 12 x 512 bytes for 32 mma's.

template <unsigned WEIGHTS_, unsigned ROWS_, unsigned WARP_WEIGHTS>
struct Tiling {
  // Lines of weights, and rows.
  static constexpr unsigned WEIGHTS = WEIGHTS_, ROWS = ROWS_, LINES = WEIGHTS + ROWS, STAGES = 4;
  // Blocks that a processor should hold at a time.
  static constexpr unsigned RESIDENT = LINES == 256 ? 1 : LINES == 192 ? 2 : 3;
  static constexpr unsigned WARPS_ALONG = WEIGHTS / WARP_WEIGHTS;
  static constexpr unsigned THREADS = WARPS_ALONG * (ROWS / 32) * 32;
  // mma tiles of a warp: of 16 lines, of 8 rows.
  static constexpr unsigned HIGH = WARP_WEIGHTS / 16, WIDE = 4;
  // 16-byte chunks of a step, [LINES, 4], and of a stage.
  static constexpr unsigned STEP = LINES * 4, STAGE = 2 * STEP;
  // Chunks of a stage that each thread copies, and how many lines these are apart.
  static constexpr unsigned COPIES = STAGE / THREADS, APART = THREADS / 8;

  // Where the thread's sums lie: tile (i, j), number k.
  __device__ static unsigned line(unsigned i, unsigned k) {
    unsigned warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4;
    return blockIdx.x * WEIGHTS + warp % WARPS_ALONG * WARP_WEIGHTS + i * 16 + k / 2 * 8 + group;
  }
  __device__ static unsigned row(unsigned j, unsigned k) {
    unsigned warp = threadIdx.x / 32, quad = threadIdx.x % 4;
    return blockIdx.y * ROWS + warp / WARPS_ALONG * 32 + j * 8 + 2 * quad + k % 2;
  }
};

// The one for arithmetic, one for fewer rows, and one that gives small products more blocks.
using Large = Tiling<128, 128, 64>;
using Narrow = Tiling<128, 64, 64>;
using Small = Tiling<64, 64, 32>;

// A warp's part of the block's tile: sums[i][j] belongs to 16 lines and 8 rows.
template <class T>
struct Sums {
  float of[T::HIGH][T::WIDE][4];
};

template <class T, bool ALIGNED, class Weights>
__device__ __forceinline__ void product_many(const ProductParams &p, Weights weights,
                                             Sums<T> &total) {
  SHARED(uint4, stages);  // [STAGES, 2 steps, LINES (weights, then x), 4]
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Within a step, the lane's weights begin here, its x there. 8 lanes read 128 bytes in a row.
  unsigned weights_at = warp % T::WARPS_ALONG * T::HIGH * 64 + lane;
  unsigned x_at = T::WEIGHTS * 4 + warp / T::WARPS_ALONG * 128 + lane;
  unsigned per_slice = slice_steps(p.inputs), steps = div_up(p.inputs, DEPTH);
  unsigned stage_count = div_up(steps, 2);

  // The thread copies this part (8 numbers) of each APARTth line.
  unsigned first_line = threadIdx.x / 8, part = threadIdx.x % 8;
  const bf16 *lines[T::COPIES];
  unsigned inside = 0;  // bits: lines that there are
#pragma unroll
  for (unsigned i = 0; i < T::COPIES; i++) {
    unsigned line = first_line + i * T::APART;
    bool weight = line < T::WEIGHTS;
    line += weight ? blockIdx.x * T::WEIGHTS : blockIdx.y * T::ROWS - T::WEIGHTS;
    unsigned row = weight ? Weights::output(line) : line;
    bool exists = row < (weight ? p.outputs : p.rows);
    inside |= unsigned(exists) << i;
    lines[i] = (weight ? weights.of(line) : p.x) + (exists ? size_t(row) * p.inputs : 0);
  }
  uint4 *place = stages + part / 4 * T::STEP + first_line * 4 + part % 4;
  auto copy_stage = [&](unsigned index) {
    unsigned at = index * 2 * DEPTH + part * 8;
    uint4 *to = place + index % T::STAGES * T::STAGE;
#pragma unroll
    for (unsigned i = 0; i < T::COPIES; i++) {
      bool valid = at < p.inputs && (inside >> i & 1);
      if constexpr (ALIGNED) {
        copy_async(to + i * T::APART * 4, lines[i] + (valid ? at : 0), valid);
      } else {
        to[i * T::APART * 4] = load_eight<false>(lines[i], at, valid ? p.inputs : 0);
      }
    }
  };

  total = Sums<T>{};
  Sums<T> slice{};
  for (unsigned i = 0; i < T::STAGES - 1; i++) {
    if (i < stage_count) copy_stage(i);
    copy_commit();
  }
  unsigned left = per_slice;
  for (unsigned index = 0; index < stage_count; index++) {
    copy_wait<T::STAGES - 2>();
    __syncthreads();
    if (index + T::STAGES - 1 < stage_count) copy_stage(index + T::STAGES - 1);
    copy_commit();
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
      if (2 * index + half >= steps) break;
      const uint4 *step = stages + index % T::STAGES * T::STAGE + half * T::STEP;
      uint4 x[T::WIDE];
#pragma unroll
      for (unsigned j = 0; j < T::WIDE; j++) x[j] = step[x_at + j * 32];
#pragma unroll
      for (unsigned i = 0; i < T::HIGH; i++) {
        uint4 upper = step[weights_at + i * 64], lower = step[weights_at + i * 64 + 32];
#pragma unroll
        for (unsigned j = 0; j < T::WIDE; j++) mma_step(slice.of[i][j], upper, lower, x[j]);
      }
      if (--left == 0 || 2 * index + half + 1 == steps) {
        left = per_slice;
#pragma unroll
        for (unsigned i = 0; i < T::HIGH; i++)
#pragma unroll
          for (unsigned j = 0; j < T::WIDE; j++)
#pragma unroll
            for (unsigned k = 0; k < 4; k++) {
              total.of[i][j][k] += slice.of[i][j][k];
              slice.of[i][j][k] = 0;
            }
      }
    }
  }
}

template <class T, class Weights>
__device__ __forceinline__ void product_many(const ProductParams &p, Weights weights,
                                             Sums<T> &total) {
  if (p.inputs % CHUNK == 0) {
    product_many<T, true>(p, weights, total);
  } else {
    product_many<T, false>(p, weights, total);
  }
}

// Calls store as product_few does.
template <class T, class Weights, class Store>
__device__ void product_many(const ProductParams &p, Weights weights, Store store) {
  Sums<T> sums;
  product_many(p, weights, sums);
#pragma unroll
  for (unsigned i = 0; i < T::HIGH; i++)
#pragma unroll
    for (unsigned j = 0; j < T::WIDE; j++)
#pragma unroll
      for (unsigned k = 0; k < (Weights::PAIR ? 2 : 4); k++) {
        const float(&of)[4] = sums.of[i][j];
        unsigned row = T::row(j, k), output = Weights::output(T::line(i, k));
        if (row >= p.rows || output >= p.outputs) continue;
        if constexpr (Weights::PAIR) {
          store(row, output, of[k], of[k + 2]);
        } else {
          store(row, output, of[k]);
        }
      }
}

template <class T, class Store>
__device__ void product_many(const ProductParams &p, Store store) {
  product_many<T>(p, One{p.weight}, store);
}

// ---- a product that is stored: its bias comes in, a function of both, and the rounding to bf16 ----

template <class Activation>
struct StoreActivated {
  const MatmulParams &p;
  __device__ void operator()(unsigned row, unsigned output, float sum) const {
    float bias = p.bias ? p.bias[output] : 0;
    p.out[size_t(row) * p.product.outputs + output] = to_bf16(Activation::of(sum + bias));
  }
};
