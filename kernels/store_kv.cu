// Writes the keys and values of each row to its slot of one layer, if it has one.
// grid: rows; block: THREADS; moves 4 bytes per number.
#include "common.cuh"

extern "C" __global__ void store_kv(const StoreKvParams p) {
  if (p.slots[blockIdx.x] == NO_SLOT) return;
  const PoolParams &shape = p.shape;
  unsigned page = p.slots[blockIdx.x] / PAGE_LEN, offset = p.slots[blockIdx.x] % PAGE_LEN;
  unsigned kv_width = shape.kv_heads * shape.head_dim;
  size_t width = size_t(shape.query_heads) * shape.head_dim + 2 * kv_width;
  const bf16 *from = p.qkv + blockIdx.x * width + size_t(shape.query_heads) * shape.head_dim;
  for (unsigned i = threadIdx.x; i < 2 * kv_width; i += blockDim.x) {
    unsigned which = i / kv_width, head = i % kv_width / shape.head_dim;
    size_t to = page_offset(shape, p.layer, page, head, which);
    p.pool[to + offset * shape.head_dim + i % shape.head_dim] = from[i];
  }
}
