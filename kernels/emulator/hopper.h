// What a block asks for and gets some time later: between the scheduler (emulator.cpp), which chooses among it and
// the fibers, and the instructions that ask (hopper.cpp).
#pragma once

#include "emulator.h"

#include <deque>
#include <vector>

namespace emulator {

struct Barrier {
  const void *at;
  unsigned arrivals, missing, phase;
  long long bytes;  // still to come; below zero if they came before they were expected
};

struct BarrierWaiter {
  unsigned thread, barrier, parity;
};

// A copy that is under way.
struct Box {
  char *to;
  const char *from;  // the matrix
  unsigned long long inputs, matrix_rows;
  unsigned box_rows, column, row, barrier;
  unsigned long long twin;  // bytes to the other matrix, 0 if there is one alone
};

constexpr unsigned WARPGROUP = 128;

// A product of 64 lines and some columns. Products of a warpgroup happen in the order of their numbers, which are
// the same in all of its threads, but not before all have asked.
struct WarpgroupProduct {
  unsigned columns, sums, asked;
  unsigned long long a, b;
  bool add;
};

// What products add to, while no thread may touch its registers.
struct SumsUnderWay {
  float *registers[WARPGROUP];
  unsigned last[WARPGROUP];  // the thread's last product, from 1; 0 if its registers are its own
  unsigned threads;          // whose registers these are
  unsigned columns;
  std::vector<float> tiles;  // [lines / 16, columns / 8, 16, 8]
};

struct ProductWaiter {
  unsigned thread, done;
};

struct Warpgroup {
  static constexpr unsigned GROUPS = 8;
  unsigned done = 0;   // products so far
  unsigned ready = 0;  // products that all threads have asked for and that are still to happen
  std::deque<WarpgroupProduct> products;  // from number `done` on
  std::vector<SumsUnderWay> sums;
  std::vector<ProductWaiter> waiters;
  // Of each thread.
  unsigned asked[WARPGROUP] = {};   // products
  unsigned groups[WARPGROUP] = {};  // committed
  unsigned ends[WARPGROUP][GROUPS];  // asked when the last few groups were committed
  bool fenced[WARPGROUP] = {};
};

struct Asynchronous {
  std::vector<Barrier> barriers;
  std::vector<BarrierWaiter> waiters;
  std::vector<Box> boxes;
  std::vector<Warpgroup> warpgroups;  // none before the first product
  unsigned products = 0;              // that may happen

  bool idle() const { return boxes.empty() && products == 0; }
  void clear() {
    barriers.clear();
    waiters.clear();
    boxes.clear();
    warpgroups.clear();
    products = 0;
  }
};

// ---- of the scheduler, for the block at hand ----

Asynchronous &asynchronous();
unsigned block_threads();
size_t shared_bytes();
void count_copied(size_t bytes);
void sleep_at(const char *site);
void wake(unsigned thread);

// ---- for the scheduler ----

// Lets one of the copies happen, or one of the products that may.
void finish_copy(unsigned pick);
void finish_product(unsigned pick);

// Fails if a thread of the block has not waited for its products.
void require_waited();

}  // namespace emulator
