// Moves every row to its next token: the one just drawn, one position on, in the slot that the
// row's page table gives it; keeps the token in history[step].
// grid: enough for one row a thread; block: THREADS.
#include "common.cuh"

extern "C" __global__ void advance(const AdvanceParams p) {
  unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= p.rows) return;
  unsigned token = p.drawn[row], position = p.positions[row] + 1;
  p.history[size_t(p.step) * p.rows + row] = token;
  p.tokens[row] = token;
  p.positions[row] = position;
  // The last step's row may have no page any more; its slot is never used.
  unsigned entry = position / PAGE_LEN;
  if (entry < p.table_stride) {
    p.slots[row] = p.tables[size_t(row) * p.table_stride + entry] * PAGE_LEN + position % PAGE_LEN;
  }
}
