// Queries, keys and values of few rows: x · weightᵀ + bias, rounded to bf16; queries and keys rotated as rope does, where
// there are positions; queries go to `out`, keys and values to the slots of the row's entries as store_kv does
// grid, block, shared: see product.cuh; moves 2 bytes per weight and x, 2 for each number and entry.
#include "product.cuh"
#include "rotary.cuh"

namespace {
struct StoreQkv {
  static constexpr bool GROUPS = false, BY_ROW = true;
  struct Early {
    float first_bias, second_bias, cosine, sine;
    unsigned begin, end;  // of the row's entries
    unsigned slot;        // of the first one, most often the only one
  };
  using Late = Nothing;
  const QkvParams &p;

  __device__ unsigned head(unsigned output) const { return output / p.shape.head_dim; }
  __device__ bool turns(unsigned output) const {
    return p.positions && head(output) < p.shape.query_heads + p.shape.kv_heads;
  }
  __device__ bool is_query(unsigned output) const { return head(output) < p.shape.query_heads; }

  // Positions, entries and slots are older than the two launches in front. `output` is in the first half of its head.
  __device__ Early early(unsigned row, unsigned output) const {
    unsigned half = p.shape.head_dim / 2;
    Early early{0, 0, 0, 0, 0, 0, NO_SLOT};
    if (p.bias) {
      early.first_bias = p.bias[output];
      early.second_bias = p.bias[output + half];
    }
    if (turns(output)) {
      const float *angles = p.cos_sin + size_t(p.positions[row]) * p.shape.head_dim + output % half;
      early.cosine = angles[0];
      early.sine = angles[half];
    }
    if (!is_query(output)) {
      early.begin = p.starts[row];
      early.end = p.starts[row + 1];
      if (early.begin < early.end) early.slot = p.slots[p.entries[early.begin]];
    }
    return early;
  }
  __device__ Nothing late(unsigned, unsigned) const { return {}; }

  __device__ void store(unsigned row, unsigned output, Early early, Nothing, float first,
                        float second) const {
    const PoolParams &shape = p.shape;
    unsigned half = shape.head_dim / 2, channel = output % shape.head_dim;
    Turned both{to_bf16(first + early.first_bias), to_bf16(second + early.second_bias)};
    if (turns(output)) both = turn(both.first, both.second, early.cosine, early.sine);
    if (is_query(output)) {
      bf16 *to = p.out + size_t(row) * p.product.outputs + output;
      to[0] = both.first;
      to[half] = both.second;
      return;
    }
    unsigned kv_head = head(output) - shape.query_heads;
    unsigned which = kv_head / shape.kv_heads, head = kv_head % shape.kv_heads;
    for (unsigned at = early.begin; at < early.end; at++) {
      unsigned slot = at == early.begin ? early.slot : p.slots[p.entries[at]];
      if (slot == NO_SLOT) continue;
      bf16 *page = p.pool + page_offset(shape, p.layer, slot / PAGE_LEN, head, which);
      bf16 *to = page + slot % PAGE_LEN * shape.head_dim + channel;
      to[0] = both.first;
      to[half] = both.second;
    }
  }
};

template <unsigned TILES>
__device__ __forceinline__ void few(const QkvParams &p) {
  product_few<TILES>(p.product, Halves{p.product.weight, p.shape.head_dim / 2}, StoreQkv{p});
}
}  // namespace

// Up to 8 and 16 rows a block.
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    qkv_8(const QkvParams p) { few<1>(p); }
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    qkv_16(const QkvParams p) { few<2>(p); }
