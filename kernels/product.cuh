// x · weightᵀ on tensor cores, for matmul and its kin, logits and logprobs.
//
// A sum over the inner dimension has ONE order, whatever kernel computes it and whatever rows share the
// batch: the dimension is cut into SLICES parts of whole 64s; each is added up from zero, 16 neighbours a
// time; the parts are added in order. So a row gives the same bits alone, in a batch of 64 and in a prefill.
//
// An mma adds its 16 products and the sum so far without an order: all are cut off at one place, 25 bits below
// the largest (Li et al., MMA-Sim, arXiv 2511.10909; an H200 was held against it). So it is free which lane
// has which of the 16. The weights' rows are the mma's 16 rows, the batch's rows its 8 columns.
//
// Kernels for few rows are here, and tiles for many rows by mma.sync; product_wide.cuh has those by wgmma.
#pragma once

#include "common.cuh"

constexpr unsigned SLICES = 8;
constexpr unsigned DEPTH = 32;  // positions of the inner dimension that are taken together: two mma's
constexpr unsigned STEP = 64;   // of which slices are multiples

// Whole steps of DEPTH in one slice.
__device__ inline unsigned slice_depths(unsigned inputs) {
  return STEP / DEPTH * div_up(div_up(inputs, STEP), SLICES);
}

// Rows whose length is a multiple of 8 begin at multiples of 16 bytes; the others are read number by
// number.
constexpr unsigned CHUNK = 8;

// 8 numbers of a row that begins at a multiple of 16 bytes, or may begin anywhere, from position `at` on;
// zeros beyond the row's end. What is read ONCE does not go to the L1, which is for what others of the
// processor read again.
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

// The two mma's of one step: `upper` and `lower` are the weights' rows g and g + 8, and each operand's first
// half is of the first 16 positions.
__device__ inline void mma_step(float (&sums)[4], uint4 upper, uint4 lower, uint4 x) {
  mma(sums, {upper.x, lower.x, upper.y, lower.y}, {x.x, x.y});
  mma(sums, {upper.z, lower.z, upper.w, lower.w}, {x.z, x.w});
}

// A quad's lanes have loaded 8 neighbours of 32 positions each. Lanes 0, 1 have the first 16 positions between
// them and lanes 2, 3 the others; afterwards each lane has 4 numbers of both.
template <unsigned COUNT>
__device__ __forceinline__ void share_sets(uint4 (&numbers)[COUNT]) {
  bool first = threadIdx.x % 4 < 2;
  Words<2 * COUNT> sent;
#pragma unroll
  for (unsigned i = 0; i < COUNT; i++) {
    sent.of[2 * i] = first ? numbers[i].z : numbers[i].x;
    sent.of[2 * i + 1] = first ? numbers[i].w : numbers[i].y;
  }
  Words<2 * COUNT> got = exchange(sent, 2);
#pragma unroll
  for (unsigned i = 0; i < COUNT; i++) {
    unsigned x = got.of[2 * i], y = got.of[2 * i + 1];
    uint4 &to = numbers[i];
    to = first ? uint4{to.x, to.y, x, y} : uint4{x, y, to.z, to.w};
  }
}

// ---- whose sums: which row of which matrix a line of weights is ----
//
// A block takes some of all lines, 16 of which are an mma's rows. A thread has the sums of lines g and g + 8
// of 16: where these belong together, PAIR, an epilogue gets both.

// A line is a row.
struct One {
  static constexpr bool PAIR = false;
  const bf16 *weight;
  __device__ unsigned output(unsigned line) const { return line; }
  __device__ const bf16 *of(unsigned) const { return weight; }
};

// Two matrices of one shape take turns of 8 lines: the two sums of an output.
struct Pair {
  static constexpr bool PAIR = true;
  const bf16 *first, *second;
  __device__ unsigned output(unsigned line) const { return line / 16 * 8 + line % 8; }
  __device__ const bf16 *of(unsigned line) const { return line % 16 < 8 ? first : second; }
};

// The halves of each head of one matrix take turns of 8 lines: the sums of channels i and i + half, which a
// rotation turns into one another. `half` is a multiple of 8.
struct Halves {
  static constexpr bool PAIR = true;
  const bf16 *weight;
  unsigned half;
  __device__ unsigned output(unsigned line) const {
    unsigned channel = line / 16 * 8 + line % 8;  // among the first halves of all heads
    return channel + channel / half * half + (line % 16 < 8 ? 0 : half);
  }
  __device__ const bf16 *of(unsigned) const { return weight; }
};

// ---- what becomes of a sum ----
//
// An epilogue has
//
//   Early early(output)                           what it wants of memory that no kernel in flight writes
//   Late late(row, output)                        what it wants of other memory
//   void store(row, output, Early, Late, sums...) one sum, or two of a pair; `output` is the first one's
//
// The kernels for few rows ask for both before they multiply, so that nothing is waited for behind the sums.
//
// One with BY_ROW has early(row, output) instead, and is for those kernels alone. One with GROUPS also takes the largest of each 16 lines' sums, or NaN if one is:
//
//   void group(row, line / 16, largest)

struct Nothing {};

// The largest sum of a row in 16 lines: of two lines of the lane, then over the 8 lanes of its quad's place.
template <class Epilogue>
__device__ __forceinline__ void give_group(Epilogue epilogue, const ProductParams &p, unsigned row,
                                           unsigned line, float first, float second) {
  // Lines g and g + 8 of 16, where the first of 16 is there.
  float largest = line < p.outputs ? first : -INFINITY;
  if (line + 8 < p.outputs) largest = MaxOrNan::combine(largest, second);
  for (unsigned distance = 4; distance < 32; distance *= 2) {
    largest = MaxOrNan::combine(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
  }
  bool leads = threadIdx.x % 32 / 4 == 0;
  if (leads && row < p.rows && line < p.outputs) epilogue.group(row, line / 16, largest);
}

// ---- few rows: each weight is read once, from memory to registers ----
//
// grid: lines / 16 x rows / (8 * TILES); block: SLICES warps, a slice each. Bound by the weights'
// bytes: AHEAD steps (2 x 16 bytes a thread each) are under way before the first is used, and all others to the L2,
// before the kernel in front is done. The rows of x are the same for all blocks of a processor, which find them in the L1.

constexpr unsigned FEW_THREADS = SLICES * 32;
constexpr unsigned FEW_LINES = 16;
constexpr unsigned FEW_RESIDENT = 2;  // blocks that a processor should hold at a time

// ALIGNED: rows are whole CHUNKs.
template <unsigned TILES, bool ALIGNED = true, class Weights, class Epilogue>
__device__ __forceinline__ void product_few(const ProductParams &p, Weights weights, Epilogue epilogue) {
  SHARED(float, slices);  // [SLICES, FEW_LINES, WIDTH]
  constexpr unsigned WIDTH = TILES * 8;
  // Steps under way: as many of x as there are registers for.
  constexpr unsigned AHEAD = !ALIGNED ? 1 : TILES <= 4 ? 4 : 2;
  constexpr unsigned X_AHEAD = !ALIGNED ? 1 : TILES <= 2 ? 4 / TILES : 1;
  unsigned lane = threadIdx.x % 32, slice = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  unsigned first_line = blockIdx.x * FEW_LINES, first_row = blockIdx.y * WIDTH;
  unsigned all = div_up(p.inputs, DEPTH), per_slice = slice_depths(p.inputs), first = slice * per_slice;
  unsigned steps = first < all ? min(per_slice, all - first) : 0;
  // Where the lane's numbers of the first step stand; rows and outputs beyond the end repeat the last one, and
  // their sums are not stored.
  unsigned at = first * DEPTH + quad * CHUNK;
  auto weight_row = [&](unsigned line) {
    unsigned output = min(weights.output(line), p.outputs - 1);
    return weights.of(line) + size_t(output) * p.inputs + at;
  };
  const bf16 *upper_row = weight_row(first_line + group), *lower_row = weight_row(first_line + group + 8);
  const bf16 *x_rows[TILES];
#pragma unroll
  for (unsigned tile = 0; tile < TILES; tile++) {
    unsigned row = min(first_row + tile * 8 + group, p.rows - 1);
    x_rows[tile] = p.x + size_t(row) * p.inputs + at;
  }
  // What is left of the lane's rows from there on; the pointers and this move on together.
  unsigned left = at < p.inputs ? p.inputs - at : 0;
  uint4 upper[AHEAD], lower[AHEAD], x[X_AHEAD][TILES];
  auto load_weights = [&](unsigned ahead, unsigned i) {
    upper[i] = load_eight<ALIGNED, true>(upper_row, ahead * DEPTH, left);
    lower[i] = load_eight<ALIGNED, true>(lower_row, ahead * DEPTH, left);
  };
  auto load_x = [&](unsigned ahead, unsigned i) {
#pragma unroll
    for (unsigned tile = 0; tile < TILES; tile++) {
      x[i][tile] = load_eight<ALIGNED, false>(x_rows[tile], ahead * DEPTH, left);
    }
  };
#pragma unroll
  for (unsigned i = 0; i < AHEAD; i++) {
    if (i < steps) load_weights(i, i);
  }
  // The rest of the slice on its way to the L2, LINE bytes at a time: two lanes for each of its 16 lines. More loads
  // under way would not help: a warp has six counters to wait for them by.
  constexpr unsigned LINE = 128;
  const char *rest = reinterpret_cast<const char *>(weight_row(first_line + lane / 2) - quad * CHUNK);
  for (unsigned byte = AHEAD * DEPTH * 2 + lane % 2 * LINE; byte < steps * DEPTH * 2; byte += 2 * LINE) {
    if (first * DEPTH + byte / 2 < p.inputs) prefetch(rest + byte);
  }

  // The sums that the thread stores: of the same output, OUTPUTS of which make a row of the block.
  constexpr unsigned OUTPUTS = Weights::PAIR ? FEW_LINES / 2 : FEW_LINES;
  constexpr unsigned STORED = OUTPUTS * WIDTH, TURNS = STORED < FEW_THREADS ? 1 : STORED / FEW_THREADS;
  unsigned my_line = threadIdx.x % OUTPUTS, my_row = threadIdx.x / OUTPUTS;
  unsigned output = weights.output(first_line + my_line);
  auto row_of = [&](unsigned turn) { return my_row + turn * (FEW_THREADS / OUTPUTS); };
  auto stores = [&](unsigned turn) {
    return row_of(turn) < WIDTH && first_row + row_of(turn) < p.rows && output < p.outputs;
  };
  typename Epilogue::Early early[TURNS] = {};
  typename Epilogue::Late late[TURNS] = {};
#pragma unroll
  for (unsigned turn = 0; turn < TURNS; turn++) {
    if (!stores(turn)) continue;
    if constexpr (Epilogue::BY_ROW) {
      early[turn] = epilogue.early(first_row + row_of(turn), output);
    } else {
      early[turn] = epilogue.early(output);
    }
  }
  wait_for_previous();
  start_next();
#pragma unroll
  for (unsigned i = 0; i < X_AHEAD; i++) {
    if (i < steps) load_x(i, i);
  }
#pragma unroll
  for (unsigned turn = 0; turn < TURNS; turn++) {
    if (stores(turn)) late[turn] = epilogue.late(first_row + row_of(turn), output);
  }

  float sums[TILES][4] = {};
  for (unsigned start = 0; start < steps; start += AHEAD) {
#pragma unroll
    for (unsigned i = 0; i < AHEAD; i++) {
      if (start + i < steps) {
        // Lines g and g + 8 of the weights, then the columns of x.
        constexpr unsigned COLUMNS = TILES <= 2 ? TILES : 1;
        uint4 operands[2 + COLUMNS] = {upper[i], lower[i]};
#pragma unroll
        for (unsigned tile = 0; tile < COLUMNS; tile++) operands[2 + tile] = x[i % X_AHEAD][tile];
        share_sets(operands);
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
          uint4 column[1] = {tile < COLUMNS ? operands[2 + tile % COLUMNS] : x[i % X_AHEAD][tile]};
          if (tile >= COLUMNS) share_sets(column);
          mma_step(sums[tile], operands[0], operands[1], column[0]);
        }
      }
      if (start + i + AHEAD < steps) load_weights(i + AHEAD, i);
      if (start + i + X_AHEAD < steps) load_x(i + X_AHEAD, i % X_AHEAD);
    }
    upper_row += AHEAD * DEPTH;
    lower_row += AHEAD * DEPTH;
    left -= min(left, AHEAD * DEPTH);
#pragma unroll
    for (unsigned tile = 0; tile < TILES; tile++) x_rows[tile] += AHEAD * DEPTH;
  }

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
#pragma unroll
  for (unsigned turn = 0; turn < TURNS; turn++) {
    unsigned row = row_of(turn);
    if constexpr (Epilogue::GROUPS) {
      // 16 lanes have a row's sums.
      float largest = stores(turn) ? sum(my_line, row) : -INFINITY;
      for (unsigned distance = FEW_LINES / 2; distance > 0; distance /= 2) {
        largest = MaxOrNan::combine(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
      }
      if (my_line == 0 && stores(turn)) epilogue.group(first_row + row, blockIdx.x, largest);
    }
    if (!stores(turn)) continue;
    if constexpr (Weights::PAIR) {
      float second = sum(my_line + 8, row);
      epilogue.store(first_row + row, output, early[turn], late[turn], sum(my_line, row), second);
    } else {
      epilogue.store(first_row + row, output, early[turn], late[turn], sum(my_line, row));
    }
  }
}

// ---- many rows: tiles through shared memory ----
//
// grid: lines / WEIGHTS x rows / ROWS; block: warps of WARP_WEIGHTS lines and 32 rows each.
// STAGES tiles of STEP positions are under way at a time. Bound by arithmetic, and by shared memory, of
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
  // 16-byte chunks of half a stage, [LINES, 4], and of a stage.
  static constexpr unsigned HALF = LINES * 4, STAGE = 2 * HALF;
  // Chunks of a stage that each thread copies, and how many lines these are apart.
  static constexpr unsigned COPIES = STAGE / THREADS, APART = THREADS / 8;
  static constexpr unsigned WEIGHT_COPIES = WEIGHTS / APART;
  static_assert(WEIGHTS % APART == 0, "weights first, then x");

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

template <class T, bool ALIGNED = true, class Weights>
__device__ __forceinline__ void product_many(const ProductParams &p, Weights weights,
                                             Sums<T> &total) {
  SHARED(uint4, stages);  // [STAGES, 2 halves, LINES (weights, then x), 4]
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Within a step, the lane's lines of weights and of x begin here, in chunks. It takes 4 numbers of each half of a
  // line: two lanes share a chunk.
  unsigned weights_at = (warp % T::WARPS_ALONG * T::HIGH * 16 + lane / 4) * 4;
  unsigned x_at = (T::WEIGHTS + warp / T::WARPS_ALONG * 32 + lane / 4) * 4;
  auto numbers = [&](const uint4 *line) {
    auto halves = reinterpret_cast<const uint2 *>(line) + lane % 4;
    uint2 first = halves[0], second = halves[4];
    return uint4{first.x, first.y, second.x, second.y};
  };
  unsigned stage_count = div_up(p.inputs, STEP), per_slice = div_up(stage_count, SLICES);

  // The thread copies this part (8 numbers) of each APARTth line: first the weights', then those of x.
  unsigned first_line = threadIdx.x / 8, part = threadIdx.x % 8;
  const bf16 *lines[T::COPIES];
  unsigned inside = 0;  // bits: lines that there are
#pragma unroll
  for (unsigned i = 0; i < T::COPIES; i++) {
    unsigned line = first_line + i * T::APART;
    bool weight = i < T::WEIGHT_COPIES;
    line += weight ? blockIdx.x * T::WEIGHTS : blockIdx.y * T::ROWS - T::WEIGHTS;
    unsigned row = weight ? weights.output(line) : line;
    bool exists = row < (weight ? p.outputs : p.rows);
    inside |= unsigned(exists) << i;
    lines[i] = (weight ? weights.of(line) : p.x) + (exists ? size_t(row) * p.inputs : 0);
  }
  uint4 *place = stages + part / 4 * T::HALF + first_line * 4 + part % 4;
  auto copy_line = [&](unsigned index, unsigned i) {
    unsigned at = index * STEP + part * CHUNK;
    uint4 *to = place + index % T::STAGES * T::STAGE + i * T::APART * 4;
    bool valid = at < p.inputs && (inside >> i & 1);
    if constexpr (ALIGNED) {
      copy_async(to, lines[i] + (valid ? at : 0), valid);
    } else {
      *to = load_eight<false>(lines[i], at, valid ? p.inputs : 0);
    }
  };

  // The weights of the first stages before the wait, x behind it.
  for (unsigned index = 0; index < T::STAGES - 1 && index < stage_count; index++) {
#pragma unroll
    for (unsigned i = 0; i < T::WEIGHT_COPIES; i++) copy_line(index, i);
  }
  wait_for_previous();
  start_next();
  for (unsigned index = 0; index < T::STAGES - 1; index++) {
#pragma unroll
    for (unsigned i = T::WEIGHT_COPIES; i < T::COPIES; i++) {
      if (index < stage_count) copy_line(index, i);
    }
    copy_commit();
  }
  total = Sums<T>{};
  Sums<T> slice{};
  unsigned left = per_slice;
  for (unsigned index = 0; index < stage_count; index++) {
    copy_wait<T::STAGES - 2>();
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < T::COPIES; i++) {
      if (index + T::STAGES - 1 < stage_count) copy_line(index + T::STAGES - 1, i);
    }
    copy_commit();
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
      const uint4 *step = stages + index % T::STAGES * T::STAGE + half * T::HALF;
      uint4 x[T::WIDE];
#pragma unroll
      for (unsigned j = 0; j < T::WIDE; j++) x[j] = numbers(step + x_at + j * 32);
#pragma unroll
      for (unsigned i = 0; i < T::HIGH; i++) {
        uint4 upper = numbers(step + weights_at + i * 64), lower = numbers(step + weights_at + i * 64 + 32);
#pragma unroll
        for (unsigned j = 0; j < T::WIDE; j++) mma_step(slice.of[i][j], upper, lower, x[j]);
      }
    }
    if (--left > 0 && index + 1 < stage_count) continue;
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

// Gives the epilogue all sums of the block.
template <class T, class Weights, class Epilogue>
__device__ void product_many(const ProductParams &p, Weights weights, Epilogue epilogue) {
  Sums<T> sums;
  product_many<T>(p, weights, sums);
  if constexpr (Epilogue::GROUPS) {
#pragma unroll
    for (unsigned i = 0; i < T::HIGH; i++)
#pragma unroll
      for (unsigned j = 0; j < T::WIDE; j++)
#pragma unroll
        for (unsigned k = 0; k < 2; k++) {
          const float(&of)[4] = sums.of[i][j];
          give_group(epilogue, p, T::row(j, k), T::line(i, k), of[k], of[k + 2]);
        }
  }
#pragma unroll
  for (unsigned i = 0; i < T::HIGH; i++)
#pragma unroll
    for (unsigned j = 0; j < T::WIDE; j++)
#pragma unroll
      for (unsigned k = 0; k < (Weights::PAIR ? 2 : 4); k++) {
        const float(&of)[4] = sums.of[i][j];
        unsigned row = T::row(j, k), output = weights.output(T::line(i, k));
        if (row >= p.rows || output >= p.outputs) continue;
        auto early = epilogue.early(output);
        auto late = epilogue.late(row, output);
        if constexpr (Weights::PAIR) {
          epilogue.store(row, output, early, late, of[k], of[k + 2]);
        } else {
          epilogue.store(row, output, early, late, of[k]);
        }
      }
}

// ---- a product that is stored: its bias comes in, a function of both, and the rounding to bf16 ----

template <class Activation>
struct StoreActivated {
  static constexpr bool GROUPS = false, BY_ROW = false;
  using Early = float;
  using Late = Nothing;
  const MatmulParams &p;
  __device__ float early(unsigned output) const { return p.bias ? p.bias[output] : 0; }
  __device__ Nothing late(unsigned, unsigned) const { return {}; }
  __device__ void store(unsigned row, unsigned output, float bias, Nothing, float sum) const {
    p.out[size_t(row) * p.product.outputs + output] = to_bf16(Activation::of(sum + bias));
  }
};
