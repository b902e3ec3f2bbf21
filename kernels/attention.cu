// softmax(scale · q · kᵀ) · v over pages, on tensor cores
//
// A block takes one K/V head and a tile of up to QUERIES (8, 16 or 32) queries: the heads that share
// the K/V head, times consecutive rows of the batch, whatever sequences these belong to. A page that
// several of the tile's rows share is read once for all of them: the prompt's pages for all
// candidates, a beam's for its successors. A page is 16 positions, the 16 rows of an mma:
//
//   scores [positions, queries]  = keys [positions, channels] · queriesᵀ
//   sums   [channels, queries]  += valuesᵀ [channels, positions] · weights [positions, queries]
//
// A weight is the sum of two bf16 numbers, so that nothing is lost that would show in the result.
// Tensor cores multiply every value by every query's weight, also by the weights 0 of queries that
// do not own the page; these keep their sums untouched, whatever the values are. What no query
// sees is cleared, since it may be no number.
//
// The order of every sum is fixed by absolute positions: a split is SPLIT_PAGES pages, warp w of
// it takes pages w, w + 4, ...; warps are joined in order, then splits in order. So a query's bits
// do not depend on which queries share its tile, nor on whether a block walks over all splits or
// each split has its block and attention_merge joins them (few tiles, long texts).
//
// grid: tiles x kv_heads x (1: walk over all splits, or the number of splits); block: THREADS;
// shared: Memory, as in the host code. Moves 2 · PAGE_LEN · head_dim bf16 numbers for each
// distinct page of a tile's rows, per tile and K/V head; tiles that run at the same time find one
// another's pages in the L2.
#include "attention_tile.cuh"

namespace attention {

// A softmax-weighted sum under way (Milakov and Gimelshein, arXiv 1805.02867) has the largest
// score, in units of log 2, and the mass, the sum of 2^(score - largest). Two of them are joined
// by weighting their masses and sums.
__device__ inline float weight_of(float max, float most) {
  return max == -INFINITY ? 0 : exp2f(max - most);
}

// `before` and `now` weight what is joined; the same fmaf everywhere, so the same bits.
struct Join {
  float before, now;

  __device__ static Join of(float before_max, float now_max) {
    float most = fmaxf(before_max, now_max);
    return {weight_of(before_max, most), weight_of(now_max, most)};
  }
  __device__ float operator()(float old_sum, float new_sum) const {
    return fmaf(now, new_sum, before * old_sum);
  }
};

// One query's sums of all channels, its maximum and its mass. The 4 numbers beyond the channels
// keep lanes that hold different queries in different banks.
template <unsigned CHANNELS>
struct Sums {
  float of[CHANNELS], max, mass, unused[2];
};

// How one query's warps are joined, and their sum with the splits before; `any` is false where the
// query sees nothing of the split, which then must not change even the sign of a zero.
struct Factors {
  float warps[WARPS];
  Join join;
  bool any;
};

template <unsigned CHANNELS, unsigned QUERIES>
struct Memory {
  // Pages that a warp has under way or works on.
  static constexpr unsigned STAGES = CHANNELS <= 64 ? 3 : 2;
  // The first of each two is done with before the second is written.
  union {
    bf16 pages[WARPS][STAGES][2 * PAGE_LEN * CHANNELS];
    Sums<CHANNELS> parts[WARPS][QUERIES];
  };
  union {
    Page lists[WARPS][WARP_PAGES * QUERIES];
    Factors factors[QUERIES];
  };
  bf16 queries[QUERIES * CHANNELS];
  Sums<CHANNELS> total[QUERIES];
  View views[QUERIES];
};

// Two numbers that are exchanged by one collective.
struct Pair {
  float first, second;
};
__device__ inline Pair exchange(Pair mine, unsigned distance) {
  unsigned long long bits = (unsigned long long)__float_as_uint(mine.second) << 32 |
                            __float_as_uint(mine.first);
  bits = __shfl_xor_sync(ALL_LANES, bits, distance);
  return {__uint_as_float(unsigned(bits)), __uint_as_float(unsigned(bits >> 32))};
}

// A warp's sums over its pages, as mma's lay them out: with group = lane / 4 and quad = lane % 4,
// [n][c] belongs to query 8 n + 2 quad + c, and sums[m][n][2 r + c] to channel 16 m + 8 r + group.
// Each lane has a part of the masses: positions group and group + 8 of all pages.
template <unsigned CHANNELS, unsigned QUERIES>
struct State {
  static constexpr unsigned BLOCKS = CHANNELS / 16, COLUMNS = QUERIES / 8;
  float max[COLUMNS][2], mass[COLUMNS][2], sums[BLOCKS][COLUMNS][4];

  __device__ State() {
#pragma unroll
    for (unsigned n = 0; n < COLUMNS; n++) {
#pragma unroll
      for (unsigned c = 0; c < 2; c++) {
        max[n][c] = -INFINITY;
        mass[n][c] = 0;
      }
#pragma unroll
      for (unsigned m = 0; m < BLOCKS; m++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) sums[m][n][i] = 0;
      }
    }
  }

  __device__ static unsigned query(unsigned n, unsigned c) {
    return 8 * n + threadIdx.x % 4 * 2 + c;
  }
  // True if one of 8 queries owns the page.
  __device__ static bool wanted(const Page &page, unsigned n) {
    return COLUMNS == 1 || (page.owners >> 8 * n & 0xff) != 0;
  }
  __device__ static bool owns(const Page &page, unsigned n, unsigned c) {
    return page.owners >> query(n, c) & 1;
  }

  // Takes in a page that lies in shared memory. `scale` is that of scores in units of log 2.
  __device__ __forceinline__ void add_page(const Page &page, const bf16 *keys, unsigned dim,
                                           float scale, const Memory<CHANNELS, QUERIES> &memory) {
    float scores[COLUMNS][4] = {};
    score(page, keys, dim, memory.queries, scores);
    // The weights, with positions along a lane's column as mma wants its second operand.
    unsigned high[COLUMNS][2], low[COLUMNS][2], seen[2] = {};
    float rescale[COLUMNS][2];
#pragma unroll
    for (unsigned n = 0; n < COLUMNS; n++) {
      if (!wanted(page, n)) continue;
      weigh(page, n, scale, memory.views, scores[n], rescale[n], seen);
#pragma unroll
      for (unsigned r = 0; r < 2; r++) {
        float first = scores[n][2 * r], second = scores[n][2 * r + 1];
        unsigned rounded = pack(first, second);
        unsigned rest = pack(first - low_float(rounded), second - high_float(rounded));
        high[n][r] = transpose(rounded);
        low[n][r] = transpose(rest);
      }
    }
    unsigned keep[2] = {~0u, ~0u};
    if (page.partly) {
#pragma unroll
      for (unsigned r = 0; r < 2; r++) keep[r] = seen_by_any(seen[r]);
    }
    const bf16 *values = keys + PAGE_LEN * CHANNELS;
    unsigned lane = threadIdx.x % 32, position = lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
#pragma unroll
    for (unsigned m = 0; m < BLOCKS; m++) {
      if (m * 16 >= dim) break;
      unsigned value[4];
      load_transposed(value, values + chunk_at<CHANNELS>(position, 2 * m + chunk));
#pragma unroll
      for (unsigned i = 0; i < 4; i++) value[i] &= keep[i / 2];
#pragma unroll
      for (unsigned n = 0; n < COLUMNS; n++) {
        if (!wanted(page, n)) continue;
        float part[4] = {};
        mma(part, value, high[n]);
        mma(part, value, low[n]);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
          float &sum = sums[m][n][i];
          if (owns(page, n, i % 2)) sum = fmaf(sum, rescale[n][i % 2], part[i]);
        }
      }
    }
  }

  // Adds the masses of all lanes and hands everything over.
  __device__ __forceinline__ void store(unsigned dim, Sums<CHANNELS> *parts) {
    unsigned group = threadIdx.x % 32 / 4;
#pragma unroll
    for (unsigned n = 0; n < COLUMNS; n++) {
      Pair all{mass[n][0], mass[n][1]};
      for (unsigned distance = 4; distance < 32; distance *= 2) {
        Pair other = exchange(all, distance);
        all = {all.first + other.first, all.second + other.second};
      }
      if (group == 0) {
        parts[query(n, 0)].mass = all.first;
        parts[query(n, 1)].mass = all.second;
#pragma unroll
        for (unsigned c = 0; c < 2; c++) parts[query(n, c)].max = max[n][c];
      }
#pragma unroll
      for (unsigned m = 0; m < BLOCKS; m++) {
        if (m * 16 >= dim) break;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
          parts[query(n, i % 2)].of[16 * m + i / 2 * 8 + group] = sums[m][n][i];
        }
      }
    }
  }

 private:
  // scores[n][2 r + c]: position 8 r + group of the page and the query of [n][c].
  __device__ static __forceinline__ void score(const Page &page, const bf16 *keys, unsigned dim,
                                               const bf16 *queries, float (&scores)[COLUMNS][4]) {
    unsigned group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (unsigned step = 0; step < CHANNELS / DEPTH; step++) {
      if (step * DEPTH >= dim) break;
      uint4 upper = read_chunk<CHANNELS>(keys, group, step * 4 + quad);
      uint4 lower = read_chunk<CHANNELS>(keys, group + 8, step * 4 + quad);
#pragma unroll
      for (unsigned n = 0; n < COLUMNS; n++) {
        if (!wanted(page, n)) continue;
        mma_step(scores[n], upper, lower,
                 read_chunk<CHANNELS>(queries, 8 * n + group, step * 4 + quad));
      }
    }
  }

  // Makes weights of 8 queries' scores: 0 where a query does not see a position. `rescale` is for
  // what was summed before; seen[r] becomes true if position 8 r + group is seen.
  __device__ void weigh(const Page &page, unsigned n, float scale, const View *views,
                        float (&scores)[4], float (&rescale)[2], unsigned (&seen)[2]) {
    unsigned position = page.index * PAGE_LEN + threadIdx.x % 32 / 4;
    bool visible[4];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      visible[i] = owns(page, n, i % 2);
      if (page.partly) visible[i] &= views[query(n, i % 2)].sees(position + i / 2 * 8);
      seen[i / 2] |= visible[i];
      // Rounded by itself: not once more or less where the compiler would fuse it.
      scores[i] = visible[i] ? __fmul_rn(scores[i], scale) : -INFINITY;
    }
    Pair most{fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3])};
    for (unsigned distance = 4; distance < 32; distance *= 2) {
      Pair other = exchange(most, distance);
      most = {fmaxf(most.first, other.first), fmaxf(most.second, other.second)};
    }
#pragma unroll
    for (unsigned c = 0; c < 2; c++) {
      float now = fmaxf(max[n][c], c ? most.second : most.first);
      rescale[c] = weight_of(max[n][c], now);
      max[n][c] = now;
      for (unsigned i = c; i < 4; i += 2) scores[i] = visible[i] ? exp2f(scores[i] - now) : 0;
      mass[n][c] = fmaf(mass[n][c], rescale[c], scores[c] + scores[c + 2]);
    }
  }

  // Ones where a query sees positions 2 quad and 2 quad + 1 (in the halves of the word) of the 8
  // whose lanes say whether they see them.
  __device__ static unsigned seen_by_any(unsigned seen) {
    unsigned lanes = __ballot_sync(ALL_LANES, seen != 0) >> threadIdx.x % 4 * 8;
    return (lanes & 0xf ? 0xffffu : 0) | (lanes & 0xf0 ? 0xffff0000u : 0);
  }
};

// Walks over one split with all warps and joins the result to memory.total.
template <unsigned CHANNELS, unsigned QUERIES>
__device__ __forceinline__ void attend_split(const AttentionParams &p, unsigned dim,
                                             unsigned kv_head, unsigned split, View view,
                                             const unsigned *table, unsigned end,
                                             Memory<CHANNELS, QUERIES> &memory) {
  using Block = Memory<CHANNELS, QUERIES>;
  constexpr float LOG2_E = 1.44269504f;
  unsigned warp = threadIdx.x / 32, first = split * SPLIT_PAGES;
  unsigned last = min(first + SPLIT_PAGES, div_up(end, PAGE_LEN));
  Page *list = memory.lists[warp];
  State<CHANNELS, QUERIES> state;
  unsigned pages = list_pages(view, table, first, last, list);
  auto buffer = [&](unsigned i) { return memory.pages[warp][i % Block::STAGES]; };
  auto start = [&](unsigned i) {
    if (i < pages) start_page<CHANNELS>(p, dim, kv_head, list[i].id, buffer(i));
    copy_commit();
  };
  for (unsigned i = 0; i + 1 < Block::STAGES; i++) start(i);
  for (unsigned i = 0; i < pages; i++) {
    copy_wait<Block::STAGES - 2>();
    // All lanes have their copies of this page and are done with the one before.
    __syncwarp();
    start(i + Block::STAGES - 1);
    Page page = list[i];
    state.add_page(page, buffer(i), dim, p.scale * LOG2_E, memory);
  }
  copy_wait<0>();
  // The parts lie over the pages.
  __syncthreads();
  state.store(dim, memory.parts[warp]);
  __syncthreads();
  if (threadIdx.x < QUERIES) {
    unsigned query = threadIdx.x;
    Sums<CHANNELS> &total = memory.total[query];
    Factors factors;
    float most = -INFINITY, mass = 0;
    for (unsigned w = 0; w < WARPS; w++) most = fmaxf(most, memory.parts[w][query].max);
    for (unsigned w = 0; w < WARPS; w++) {
      const Sums<CHANNELS> &part = memory.parts[w][query];
      factors.warps[w] = weight_of(part.max, most);
      mass = fmaf(factors.warps[w], part.mass, mass);
    }
    factors.any = mass != 0;
    factors.join = Join::of(total.max, most);
    if (factors.any) {
      total.mass = factors.join(total.mass, mass);
      total.max = fmaxf(total.max, most);
    }
    memory.factors[query] = factors;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < QUERIES * CHANNELS; i += THREADS) {
    unsigned query = i / CHANNELS, channel = i % CHANNELS;
    const Factors &factors = memory.factors[query];
    if (channel >= dim || !factors.any) continue;
    float sum = 0;
    for (unsigned w = 0; w < WARPS; w++) {
      sum = fmaf(factors.warps[w], memory.parts[w][query].of[channel], sum);
    }
    float &total = memory.total[query].of[channel];
    total = factors.join(total, sum);
  }
  __syncthreads();
}

template <unsigned CHANNELS, unsigned QUERIES>
__device__ __forceinline__ void attend(const AttentionParams &p, unsigned dim) {
  using Block = Memory<CHANNELS, QUERIES>;
  SHARED(Block, shared);
  Block &memory = *shared;
  Tile<QUERIES> tile(p);
  unsigned lane = threadIdx.x % 32;
  View view = tile.view(p, lane);
  const unsigned *table = tile.table(p, lane);
  unsigned begin = __reduce_min_sync(ALL_LANES, view.begin);
  unsigned end = __reduce_max_sync(ALL_LANES, view.end);
  bool one = gridDim.z > 1;  // of the splits, or all
  unsigned split = one ? blockIdx.z : begin / SPLIT;
  unsigned last = one ? split : (end - 1) / SPLIT;
  if (split < begin / SPLIT || split * SPLIT >= end) return;
  load_queries<CHANNELS>(p, tile, memory.queries);
  if (threadIdx.x < QUERIES) {
    memory.views[threadIdx.x] = view;
    memory.total[threadIdx.x].max = -INFINITY;
    memory.total[threadIdx.x].mass = 0;
  }
  for (unsigned i = threadIdx.x; i < QUERIES * CHANNELS; i += THREADS) {
    memory.total[i / CHANNELS].of[i % CHANNELS] = 0;
  }
  __syncthreads();
  for (; split <= last; split++) {
    attend_split(p, dim, tile.kv_head, split, view, table, end, memory);
  }
  for (unsigned i = threadIdx.x; i < tile.count * CHANNELS; i += THREADS) {
    unsigned query = i / CHANNELS, channel = i % CHANNELS;
    const Sums<CHANNELS> &total = memory.total[query];
    size_t row = size_t(tile.row(query)) * p.shape.query_heads + tile.head(query);
    if (channel >= dim) continue;
    if (one) {
      float *partial = p.partial + (row * p.splits + blockIdx.z) * (dim + 2);
      partial[channel] = total.of[channel];
      if (channel == 0) {
        partial[dim] = total.max;
        partial[dim + 1] = total.mass;
      }
    } else {
      p.out[row * dim + channel] = to_bf16(total.of[channel] / total.mass);
    }
  }
}

// A head that fills its channels, as those of real models do, gets loops without ends to be
// checked, so that loads and mma's of several steps overlap. Large tiles do without: they have the
// same overlap between their columns, and no registers to spare.
template <unsigned CHANNELS, unsigned QUERIES>
__device__ void attend(const AttentionParams &p) {
  constexpr bool OVERLAP = CHANNELS * QUERIES <= 2048;
  if (OVERLAP && p.shape.head_dim == CHANNELS) {
    attend<CHANNELS, QUERIES>(p, CHANNELS);
  } else {
    attend<CHANNELS, QUERIES>(p, p.shape.head_dim);
  }
}

}  // namespace attention

// Heads of up to 64, 128 and 256 channels, tiles of 8, 16 and 32 queries as registers allow.
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_64_8(const AttentionParams p) { attention::attend<64, 8>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_64_16(const AttentionParams p) { attention::attend<64, 16>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_64_32(const AttentionParams p) { attention::attend<64, 32>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_128_8(const AttentionParams p) { attention::attend<128, 8>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_128_16(const AttentionParams p) { attention::attend<128, 16>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_128_32(const AttentionParams p) { attention::attend<128, 32>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_256_8(const AttentionParams p) { attention::attend<256, 8>(p); }
extern "C" __global__ void __launch_bounds__(attention::THREADS, attention::RESIDENT)
    attention_256_16(const AttentionParams p) { attention::attend<256, 16>(p); }

// Joins a row's splits in order, as attend_split does. grid: rows x query_heads; block: a multiple
// of 32; moves (head_dim + 2) * 4 bytes per split.
extern "C" __global__ void attention_merge(const AttentionParams p) {
  unsigned dim = p.shape.head_dim, position = p.positions[blockIdx.x];
  unsigned begin = p.window && position >= p.window ? position + 1 - p.window : 0;
  size_t row = size_t(blockIdx.x) * p.shape.query_heads + blockIdx.y;
  for (unsigned channel = threadIdx.x; channel < dim; channel += blockDim.x) {
    float max = -INFINITY, mass = 0, sum = 0;
    for (unsigned split = begin / attention::SPLIT; split <= position / attention::SPLIT; split++) {
      const float *part = p.partial + (row * p.splits + split) * (dim + 2);
      attention::Join join = attention::Join::of(max, part[dim]);
      sum = join(sum, part[channel]);
      mass = join(mass, part[dim + 1]);
      max = fmaxf(max, part[dim]);
    }
    p.out[row * dim + channel] = to_bf16(sum / mass);
  }
}
