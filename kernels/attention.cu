// softmax(scale · q · kᵀ) · v over pages, in f32
//
// A block takes one K/V head and a tile of up to QUERIES queries: the heads of the group (those
// that share the K/V head), times rows of one segment that follow one another. Its warps walk over
// pages of 16 positions; a page's keys and values, which lie side by side, go to shared memory in
// 16-byte copies, one page ahead of the one that is computed with, and serve all queries.
//
// The order of every sum is fixed by absolute positions: a split is SPLIT_PAGES pages, warp w of
// it takes pages w, w + 4, ...; warps are merged in order, then splits in order. A page that a row
// does not see changes nothing, not even a bit. So it makes no difference whether a block walks
// over all splits (attention: many tiles) or each split has its block and attention_merge joins
// them (attention_split: few tiles, long texts), nor which rows share a tile.
//
// grid: rows x (kv_heads * head tiles) [x splits]; a block whose row is not the first of a tile
// ends at once. block: ATTENTION_THREADS; shared: see attention_shared_bytes in the host code.
// Moves 4 bytes per position, K/V head and channel, per tile.
#include "common.cuh"

constexpr unsigned QUERIES = 8;
constexpr unsigned ATTENTION_WARPS = 4;
constexpr unsigned ATTENTION_THREADS = ATTENTION_WARPS * 32;
constexpr unsigned SPLIT_PAGES = 16;

namespace {

// A softmax-weighted sum under way (Milakov and Gimelshein, arXiv 1805.02867): the largest score,
// the sum of e^(score - largest), and the values' sum with these weights.
__device__ inline float weight_of(float max, float new_max) {
  return max == -INFINITY ? 0 : expf(max - new_max);
}

// Which queries a block has.
struct Queries {
  unsigned first_row, rows, first_head, heads, kv_head, count;
  unsigned segment, first_position;

  // The query's row and head.
  __device__ unsigned row(unsigned query) const { return first_row + query / heads; }
  __device__ unsigned head(unsigned query) const { return first_head + query % heads; }
  __device__ unsigned position(unsigned query) const { return first_position + query / heads; }

  // False if the block's row is in the tile of another.
  __device__ bool find(const AttentionParams &p) {
    const PoolParams &shape = p.shape;
    unsigned group = shape.query_heads / shape.kv_heads;
    unsigned head_tile = group < QUERIES ? group : QUERIES, tile_rows = QUERIES / head_tile;
    unsigned head_tiles = div_up(group, head_tile);
    first_row = blockIdx.x;
    segment = p.row_segments[first_row];
    first_position = p.positions[first_row];
    bool first = first_row == 0 || p.row_segments[first_row - 1] != segment;
    if (!first && first_position % tile_rows != 0) return false;
    rows = 1;
    while (first_row + rows < p.rows && (first_position + rows) % tile_rows != 0 &&
           p.row_segments[first_row + rows] == segment) {
      rows++;
    }
    kv_head = blockIdx.y / head_tiles;
    unsigned offset = blockIdx.y % head_tiles * head_tile;
    first_head = kv_head * group + offset;
    heads = min(head_tile, group - offset);
    count = rows * heads;
    return true;
  }

  // The first position that any of the queries sees, and the end of the last one's.
  __device__ unsigned visible_begin(const AttentionParams &p) const {
    return p.window && first_position >= p.window ? first_position + 1 - p.window : 0;
  }
  __device__ unsigned visible_end() const { return first_position + rows; }
};

// Shared memory: queries in f32, then each warp's two pages, then its weights.
struct Layout {
  unsigned chunks;  // of 8 channels in a row
  unsigned stride;  // numbers from one row of a page to the next; 32 bytes more than it needs, so
                    // that lanes that read neighbouring rows use different banks

  __device__ explicit Layout(unsigned head_dim) {
    chunks = div_up(head_dim, 8);
    stride = chunks * 8 + 16;
  }
  __device__ unsigned page_numbers() const { return 2 * PAGE_LEN * stride; }
  __device__ float *queries(char *shared) const { return reinterpret_cast<float *>(shared); }
  __device__ bf16 *page(char *shared, unsigned warp, unsigned buffer) const {
    bf16 *pages = reinterpret_cast<bf16 *>(queries(shared) + QUERIES * chunks * 8);
    return pages + (warp * 2 + buffer) * page_numbers();
  }
  __device__ float *weights(char *shared, unsigned warp) const {
    float *after = reinterpret_cast<float *>(page(shared, ATTENTION_WARPS, 0));
    return after + warp * PAGE_LEN * QUERIES;
  }
};

// Starts copying one head's keys and values of a page.
__device__ inline void start_page(const AttentionParams &p, const Queries &q, unsigned page,
                                  const Layout &layout, bf16 *to) {
  unsigned dim = p.shape.head_dim, lane = threadIdx.x % 32;
  unsigned id = p.tables[size_t(q.segment) * p.table_stride + page];
  const bf16 *from = p.pool + page_offset(p.shape, p.layer, id, q.kv_head, 0);
  if (dim % 8 == 0) {
    for (unsigned i = lane; i < 2 * PAGE_LEN * layout.chunks; i += 32) {
      unsigned row = i / layout.chunks, chunk = i % layout.chunks;
      copy_async(to + row * layout.stride + chunk * 8, from + row * dim + chunk * 8, true);
    }
  } else {
    for (unsigned i = lane; i < 2 * PAGE_LEN * layout.chunks * 8; i += 32) {
      unsigned row = i / (layout.chunks * 8), channel = i % (layout.chunks * 8);
      to[row * layout.stride + channel] =
          channel < dim ? from[row * dim + channel] : bf16{0};
    }
  }
}

// A warp's state over its pages: lane pair l holds the scores' masses of position l, and each lane
// the channels 2 lane + 64 j and the next of the values' sums.
template <unsigned PAIRS>
struct WarpState {
  float max[QUERIES], mass[QUERIES], sums[QUERIES][PAIRS][2];

  __device__ void clear() {
#pragma unroll
    for (unsigned query = 0; query < QUERIES; query++) {
      max[query] = -INFINITY;
      mass[query] = 0;
#pragma unroll
      for (unsigned j = 0; j < PAIRS; j++) sums[query][j][0] = sums[query][j][1] = 0;
    }
  }

  // Takes in one page that lies in shared memory.
  __device__ void add_page(const AttentionParams &p, const Queries &q, unsigned page,
                           const Layout &layout, const float *queries, const bf16 *keys,
                           float *weights) {
    unsigned lane = threadIdx.x % 32, offset = lane / 2, position = page * PAGE_LEN + offset;
    float scores[QUERIES] = {};
    // Each lane of a pair takes every other chunk of 8 channels.
    for (unsigned chunk = lane % 2; chunk < layout.chunks; chunk += 2) {
      uint4 key = *reinterpret_cast<const uint4 *>(keys + offset * layout.stride + chunk * 8);
      unsigned words[4] = {key.x, key.y, key.z, key.w};
#pragma unroll
      for (unsigned query = 0; query < QUERIES; query++) {
        const float *from = queries + (query * layout.chunks + chunk) * 8;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
          scores[query] += from[2 * i] * low_float(words[i]);
          scores[query] += from[2 * i + 1] * high_float(words[i]);
        }
      }
    }
    float scaled[QUERIES];
#pragma unroll
    for (unsigned query = 0; query < QUERIES; query++) {
      float score = scores[query] + __shfl_xor_sync(ALL_LANES, scores[query], 1);
      unsigned at = q.position(query);
      bool visible = query < q.count && position <= at && (!p.window || at - position < p.window);
      score = visible ? score : -INFINITY;
      float most = score;
      for (unsigned distance = 2; distance < 32; distance *= 2) {
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, distance));
      }
      most = fmaxf(most, max[query]);
      float weight = visible ? expf(score - most) : 0;
      scaled[query] = most == -INFINITY ? 1 : weight_of(max[query], most);
      max[query] = most;
      mass[query] = mass[query] * scaled[query] + weight;
      if (lane % 2 == 0) weights[offset * QUERIES + query] = weight;
    }
    __syncwarp();
#pragma unroll
    for (unsigned query = 0; query < QUERIES; query++) {
#pragma unroll
      for (unsigned j = 0; j < PAIRS; j++) {
        sums[query][j][0] *= scaled[query];
        sums[query][j][1] *= scaled[query];
      }
    }
    const bf16 *values = keys + PAGE_LEN * layout.stride;
    // Positions that no query sees may hold anything, also what is no number.
    unsigned begin = q.visible_begin(p), end = q.visible_end();
    for (unsigned at = 0; at < PAGE_LEN; at++) {
      if (page * PAGE_LEN + at < begin || page * PAGE_LEN + at >= end) continue;
      const float *weight = weights + at * QUERIES;
#pragma unroll
      for (unsigned j = 0; j < PAIRS; j++) {
        unsigned channel = 2 * lane + 64 * j;
        if (channel >= layout.chunks * 8) continue;
        unsigned pair = *reinterpret_cast<const unsigned *>(values + at * layout.stride + channel);
#pragma unroll
        for (unsigned query = 0; query < QUERIES; query++) {
          // A weight of 0 adds nothing, so rows that do not see this position keep their bits.
          sums[query][j][0] += weight[query] * low_float(pair);
          sums[query][j][1] += weight[query] * high_float(pair);
        }
      }
    }
    __syncwarp();
  }
};

// The result of one split for all queries, in shared memory: [QUERIES, padded dim] sums, then
// maxima, then masses. `merged` may share memory with the pages.
struct Merged {
  float *sums, *max, *mass;
  unsigned width;
  __device__ Merged(float *memory, unsigned width) : width(width) {
    sums = memory;
    max = memory + QUERIES * width;
    mass = max + QUERIES;
  }
};

// Walks over split `split` with all warps; leaves the result in `merged` for all threads.
template <unsigned PAIRS>
__device__ void attend_split(const AttentionParams &p, const Queries &q, unsigned split,
                             const Layout &layout, char *shared, Merged &merged) {
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned begin = q.visible_begin(p) / PAGE_LEN, end = div_up(q.visible_end(), PAGE_LEN);
  unsigned first = split * SPLIT_PAGES, last = min(first + SPLIT_PAGES, end);
  float *weights = layout.weights(shared, warp);
  WarpState<PAIRS> state;
  state.clear();
  auto start = [&](unsigned page, unsigned buffer) {
    if (page >= begin && page < last) start_page(p, q, page, layout, layout.page(shared, warp, buffer));
    copy_commit();
  };
  start(first + warp, 0);
  for (unsigned page = first + warp, turn = 0; page < last; page += ATTENTION_WARPS, turn++) {
    start(page + ATTENTION_WARPS, (turn + 1) % 2);
    copy_wait<1>();
    __syncwarp();
    if (page >= begin) {
      state.add_page(p, q, page, layout, layout.queries(shared),
                     layout.page(shared, warp, turn % 2), weights);
    }
    __syncwarp();
  }
  copy_wait<0>();
  // All pages are done with: the warps' results lie over them.
  __syncthreads();
  unsigned size = QUERIES * (merged.width + 2);
  float *parts = reinterpret_cast<float *>(layout.page(shared, 0, 0));
  Merged mine(parts + warp * size, merged.width);
#pragma unroll
  for (unsigned query = 0; query < QUERIES; query++) {
    float mass = state.mass[query];
    for (unsigned distance = 2; distance < 32; distance *= 2) {
      mass += __shfl_xor_sync(ALL_LANES, mass, distance);
    }
    if (lane == 0) {
      mine.max[query] = state.max[query];
      mine.mass[query] = mass;
    }
#pragma unroll
    for (unsigned j = 0; j < PAIRS; j++) {
      unsigned channel = 2 * lane + 64 * j;
      if (channel < merged.width) {
        mine.sums[query * merged.width + channel] = state.sums[query][j][0];
        mine.sums[query * merged.width + channel + 1] = state.sums[query][j][1];
      }
    }
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < QUERIES * merged.width; i += blockDim.x) {
    unsigned query = i / merged.width;
    float most = -INFINITY, mass = 0, sum = 0;
    for (unsigned other = 0; other < ATTENTION_WARPS; other++) {
      most = fmaxf(most, Merged(parts + other * size, merged.width).max[query]);
    }
    for (unsigned other = 0; other < ATTENTION_WARPS; other++) {
      Merged theirs(parts + other * size, merged.width);
      float weight = weight_of(theirs.max[query], most);
      mass += weight * theirs.mass[query];
      sum += weight * theirs.sums[i];
    }
    merged.sums[i] = sum;
    if (i % merged.width == 0) {
      merged.max[query] = most;
      merged.mass[query] = mass;
    }
  }
  __syncthreads();
}

// Puts the scaled queries into shared memory; those beyond the last, and channels beyond the
// head's, are zeros.
__device__ inline void load_queries(const AttentionParams &p, const Queries &q,
                                    const Layout &layout, float *queries) {
  unsigned dim = p.shape.head_dim, padded = layout.chunks * 8;
  size_t width = size_t(p.shape.query_heads + 2 * p.shape.kv_heads) * dim;
  for (unsigned i = threadIdx.x; i < QUERIES * padded; i += blockDim.x) {
    unsigned query = i / padded, channel = i % padded;
    float value = 0;
    if (query < q.count && channel < dim) {
      value = p.scale * to_float(p.qkv[q.row(query) * width + q.head(query) * dim + channel]);
    }
    queries[i] = value;
  }
  __syncthreads();
}

// Where the running and the latest merged results lie: behind the weights.
__device__ inline float *merged_memory(const Layout &layout, char *shared) {
  return layout.weights(shared, ATTENTION_WARPS);
}

template <unsigned PAIRS>
__device__ void attend(const AttentionParams &p) {
  SHARED(char, shared);
  Queries q;
  if (!q.find(p)) return;
  Layout layout(p.shape.head_dim);
  unsigned dim = p.shape.head_dim, width = layout.chunks * 8;
  load_queries(p, q, layout, layout.queries(shared));
  float *memory = merged_memory(layout, shared);
  Merged latest(memory, width), total(memory + QUERIES * (width + 2), width);
  for (unsigned i = threadIdx.x; i < QUERIES * (width + 2); i += blockDim.x) {
    // Nothing yet: sums and masses of 0, a maximum of -infinity.
    bool is_max = i >= QUERIES * width && i < QUERIES * (width + 1);
    total.sums[i] = is_max ? -INFINITY : 0;
  }
  __syncthreads();
  constexpr unsigned SPLIT = SPLIT_PAGES * PAGE_LEN;
  for (unsigned split = q.visible_begin(p) / SPLIT; split * SPLIT < q.visible_end(); split++) {
    attend_split<PAIRS>(p, q, split, layout, shared, latest);
    auto join = [&](unsigned query, float before, float now) {
      float most = fmaxf(total.max[query], latest.max[query]);
      return weight_of(total.max[query], most) * before +
             weight_of(latest.max[query], most) * now;
    };
    for (unsigned i = threadIdx.x; i < QUERIES * width; i += blockDim.x) {
      total.sums[i] = join(i / width, total.sums[i], latest.sums[i]);
    }
    // The maxima change only when all have used them.
    __syncthreads();
    if (threadIdx.x < QUERIES) {
      unsigned query = threadIdx.x;
      total.mass[query] = join(query, total.mass[query], latest.mass[query]);
      total.max[query] = fmaxf(total.max[query], latest.max[query]);
    }
    __syncthreads();
  }
  for (unsigned i = threadIdx.x; i < q.count * dim; i += blockDim.x) {
    unsigned query = i / dim, channel = i % dim;
    size_t at = (size_t(q.row(query)) * p.shape.query_heads + q.head(query)) * dim + channel;
    p.out[at] = to_bf16(total.sums[query * width + channel] / total.mass[query]);
  }
}

template <unsigned PAIRS>
__device__ void attend_one_split(const AttentionParams &p) {
  SHARED(char, shared);
  Queries q;
  if (!q.find(p)) return;
  constexpr unsigned SPLIT = SPLIT_PAGES * PAGE_LEN;
  unsigned split = blockIdx.z;
  if (split < q.visible_begin(p) / SPLIT || split * SPLIT >= q.visible_end()) return;
  Layout layout(p.shape.head_dim);
  unsigned dim = p.shape.head_dim, width = layout.chunks * 8;
  load_queries(p, q, layout, layout.queries(shared));
  Merged result(merged_memory(layout, shared), width);
  attend_split<PAIRS>(p, q, split, layout, shared, result);
  for (unsigned i = threadIdx.x; i < q.count * (dim + 2); i += blockDim.x) {
    unsigned query = i / (dim + 2), channel = i % (dim + 2);
    size_t row = size_t(q.row(query)) * p.shape.query_heads + q.head(query);
    float value = channel < dim       ? result.sums[query * width + channel]
                  : channel == dim    ? result.max[query]
                                      : result.mass[query];
    p.partial[(row * p.splits + split) * (dim + 2) + channel] = value;
  }
}

}  // namespace

// Heads of up to 64, 128 and 256 channels.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_64(const AttentionParams p) { attend<1>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_128(const AttentionParams p) { attend<2>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_256(const AttentionParams p) { attend<4>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_split_64(const AttentionParams p) { attend_one_split<1>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_split_128(const AttentionParams p) { attend_one_split<2>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_split_256(const AttentionParams p) { attend_one_split<4>(p); }

// Joins a row's splits in order, as `attend` does. grid: rows x query_heads; block: a multiple of
// 32; moves (head_dim + 2) * 4 bytes per split.
extern "C" __global__ void attention_merge(const AttentionParams p) {
  unsigned dim = p.shape.head_dim, position = p.positions[blockIdx.x];
  constexpr unsigned SPLIT = SPLIT_PAGES * PAGE_LEN;
  // What the row's whole tile saw, so as to merge what was computed; more changes nothing.
  unsigned begin = p.window && position >= p.window ? (position + 1 - p.window) / SPLIT : 0;
  size_t row = size_t(blockIdx.x) * p.shape.query_heads + blockIdx.y;
  for (unsigned channel = threadIdx.x; channel < dim; channel += blockDim.x) {
    float max = -INFINITY, mass = 0, sum = 0;
    for (unsigned split = begin; split * SPLIT <= position; split++) {
      const float *part = p.partial + (row * p.splits + split) * (dim + 2);
      float most = fmaxf(max, part[dim]);
      float old_weight = weight_of(max, most), new_weight = weight_of(part[dim], most);
      sum = old_weight * sum + new_weight * part[channel];
      mass = old_weight * mass + new_weight * part[dim + 1];
      max = most;
    }
    p.out[row * dim + channel] = to_bf16(sum / mass);
  }
}
