// Moves every row to its next token: the one just drawn, one position on, in the slot that the
// row's page table gives it; keeps the token in history[step]. A row whose token is one of the ends
// stands still from then on: at position 0, without a slot, with the token that ended it.
// grid: enough for one row a thread; block: THREADS.
#include "common.cuh"

extern "C" __global__ void advance(const AdvanceParams p) {
  unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= p.rows) return;
  bool ended = p.slots[row] == NO_SLOT;
  unsigned token = ended ? p.tokens[row] : p.drawn[row];
  for (unsigned i = 0; i < p.end_count; i++) ended |= token == p.ends[i];
  p.history[size_t(p.step) * p.rows + row] = token;
  p.tokens[row] = token;
  if (ended) {
    p.positions[row] = 0;
    p.slots[row] = NO_SLOT;
    return;
  }
  unsigned position = p.positions[row] + 1, entry = position / PAGE_LEN;
  p.positions[row] = position;
  // The last step's row may have no page any more; its slot is never used.
  if (entry < p.table_stride) {
    p.slots[row] = p.tables[size_t(row) * p.table_stride + entry] * PAGE_LEN + position % PAGE_LEN;
  }
}
