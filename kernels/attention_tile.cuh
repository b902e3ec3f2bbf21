// A tile of queries: what each of them sees, which pages that makes, and the pages' way into
// shared memory. For attention.cu.
#pragma once

#include "product.cuh"

namespace attention {

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * 32;
constexpr unsigned RESIDENT = 2;  // blocks that a processor should hold at a time
constexpr unsigned WARP_PAGES = 4;  // page indices of one warp in one split
constexpr unsigned SPLIT_PAGES = WARPS * WARP_PAGES;
constexpr unsigned SPLIT = SPLIT_PAGES * PAGE_LEN;  // positions

// The positions of its sequence that one query sees.
struct View {
  unsigned begin, end;

  __device__ bool sees(unsigned position) const { return position >= begin && position < end; }
  __device__ bool sees_some_of(unsigned page) const {
    return begin < (page + 1) * PAGE_LEN && end > page * PAGE_LEN;
  }
  __device__ bool sees_all_of(unsigned page) const {
    return begin <= page * PAGE_LEN && end >= (page + 1) * PAGE_LEN;
  }
};
constexpr View BLIND{~0u, 0};

// Up to QUERIES queries of one K/V head. A head's queries are numbered row by row through the
// whole batch, `group` heads in each row; a tile takes those from `first` on.
template <unsigned QUERIES>
struct Tile {
  unsigned group, kv_head, first, count;

  __device__ explicit Tile(const AttentionParams &p) {
    group = p.shape.query_heads / p.shape.kv_heads;
    kv_head = blockIdx.y;
    first = blockIdx.x * QUERIES;
    count = min(QUERIES, p.rows * group - first);
  }
  __device__ unsigned row(unsigned query) const { return (first + query) / group; }
  __device__ unsigned head(unsigned query) const {
    return kv_head * group + (first + query) % group;
  }
  __device__ View view(const AttentionParams &p, unsigned query) const {
    if (query >= count) return BLIND;
    unsigned position = p.positions[row(query)];
    return {p.window && position >= p.window ? position + 1 - p.window : 0, position + 1};
  }
  // The pages of the query's sequence, in order of position.
  __device__ const unsigned *table(const AttentionParams &p, unsigned query) const {
    if (query >= count) return p.tables;
    return p.tables + size_t(p.row_segments[row(query)]) * p.table_stride;
  }
};

// A page to be read, once for all queries of the tile that own it: bit q of `owners` says that
// query q's sequence has the page at `index` of its table and that the query sees some of it. It
// sees only a part of it if bit q of `partly` is set too.
struct alignas(16) Page {
  unsigned id, index, owners, partly;
};

// Lists the distinct pages of a split that this warp reads: of the indices first + warp,
// first + warp + 4, ... below `last`, in this order. `view` and `table` are those of the query
// with the lane's number. Returns how many; all lanes may read the list.
__device__ inline unsigned list_pages(View view, const unsigned *table, unsigned first,
                                      unsigned last, Page *list) {
  constexpr unsigned NONE = ~0u;
  unsigned lane = threadIdx.x % 32, ids[WARP_PAGES], listed = 0;
  first += threadIdx.x / 32;
#pragma unroll
  for (unsigned turn = 0; turn < WARP_PAGES; turn++) {
    unsigned index = first + turn * WARPS;
    ids[turn] = index < last && view.sees_some_of(index) ? table[index] : NONE;
  }
#pragma unroll
  for (unsigned turn = 0; turn < WARP_PAGES; turn++) {
    unsigned index = first + turn * WARPS;
    if (index >= last) break;
    unsigned same = __match_any_sync(ALL_LANES, ids[turn]), before = (1u << lane) - 1;
    bool leads = ids[turn] != NONE && (same & before) == 0;
    unsigned leaders = __ballot_sync(ALL_LANES, leads);
    unsigned partly = __ballot_sync(ALL_LANES, !view.sees_all_of(index));
    if (leads) list[listed + __popc(leaders & before)] = {ids[turn], index, same, same & partly};
    listed += __popc(leaders);
  }
  __syncwarp();
  return listed;
}

// Rows of CHANNELS numbers in shared memory, in chunks of 8. A row's chunks change places among
// eight, so that neither the 8 lanes that read 4 chunks of two neighbouring rows at a time nor
// those that read one chunk of eight rows meet in a bank.
template <unsigned CHANNELS>
__device__ inline unsigned chunk_at(unsigned row, unsigned chunk) {
  return row * CHANNELS + (chunk ^ ((row & 1) << 2 | (row >> 1 & 3))) * 8;
}

template <unsigned CHANNELS>
__device__ inline uint4 read_chunk(const bf16 *rows, unsigned row, unsigned chunk) {
  return *reinterpret_cast<const uint4 *>(rows + chunk_at<CHANNELS>(row, chunk));
}

// Starts copying a page of one head, PAGE_LEN rows of keys and as many of values, with zeros up to
// the next multiple of DEPTH channels.
template <unsigned CHANNELS>
__device__ __forceinline__ void start_page(const AttentionParams &p, unsigned dim,
                                           unsigned kv_head, unsigned id, bf16 *to) {
  unsigned lane = threadIdx.x % 32;
  const bf16 *from = p.pool + page_offset(p.shape, p.layer, id, kv_head, 0);
  for (unsigned chunk = lane % 4; chunk < div_up(dim, DEPTH) * 4; chunk += 4) {
#pragma unroll
    for (unsigned row = lane / 4; row < 2 * PAGE_LEN; row += 8) {
      bf16 *place = to + chunk_at<CHANNELS>(row, chunk);
      if (dim % 8 == 0) {
        bool inside = chunk * 8 < dim;
        copy_async(place, from + (inside ? row * dim + chunk * 8 : 0), inside);
      } else {
        *reinterpret_cast<uint4 *>(place) = load_eight(from + row * dim, chunk * 8, dim);
      }
    }
  }
}

// Puts the tile's queries into shared memory; those beyond the last, and channels beyond the
// head's, are zeros.
template <unsigned CHANNELS, unsigned QUERIES>
__device__ void load_queries(const AttentionParams &p, const Tile<QUERIES> &tile, bf16 *to) {
  unsigned dim = p.shape.head_dim, chunks = div_up(dim, DEPTH) * 4;
  size_t width = size_t(p.shape.query_heads + 2 * p.shape.kv_heads) * dim;
  for (unsigned query = threadIdx.x / 4; query < QUERIES; query += THREADS / 4) {
    const bf16 *from = p.qkv;
    if (query < tile.count) from += tile.row(query) * width + tile.head(query) * dim;
    for (unsigned chunk = threadIdx.x % 4; chunk < chunks; chunk += 4) {
      uint4 numbers = load_eight(from, chunk * 8, query < tile.count ? dim : 0);
      *reinterpret_cast<uint4 *>(to + chunk_at<CHANNELS>(query, chunk)) = numbers;
    }
  }
}

}  // namespace attention
