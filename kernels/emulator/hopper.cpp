// Hopper's asynchronous instructions: barriers, copies of boxes, and products of a warpgroup.
//
// Copies and products happen when the scheduler picks them. From when it is asked for, the target of a copy is
// poisoned; so are the sums of a product until the thread has waited for it. A product reads shared memory when it
// happens, so a stage that is given back too early gives wrong numbers.

#include "hopper.h"

#include <algorithm>

namespace emulator {

namespace {

constexpr unsigned ROW_BYTES = 128;  // of a box; 16-byte chunks are exchanged within it
constexpr unsigned BOX_INPUTS = ROW_BYTES / 2, CHUNK_INPUTS = 8;
constexpr unsigned ALIGNMENT = 1024;  // 8 rows, after which the exchange repeats
constexpr unsigned char POISON = 0xff;

unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

char *at_address(unsigned address) { return shared_memory() + (address - shared_address(shared_memory())); }

}  // namespace

// ---- barriers ----

namespace {

// What a barrier's own 8 bytes say: a mark, and its number.
constexpr unsigned long long MARK = 0x6261727269657200;

unsigned number_of(const void *at) {
  unsigned long long word = 0;
  auto *bytes = static_cast<const char *>(at);
  if (uintptr_t(at) % 8 == 0 && bytes >= shared_memory() && bytes + 8 <= shared_memory() + shared_bytes()) {
    memcpy(&word, at, 8);
  }
  unsigned number = unsigned(word - MARK);
  auto &barriers = asynchronous().barriers;
  if (word < MARK || number >= barriers.size() || barriers[number].at != at) {
    fail("uses a barrier at %u of shared memory that was not initialised, or was overwritten",
         unsigned(bytes - shared_memory()));
  }
  return number;
}

// The next phase, if nothing is missing.
void settle(unsigned number) {
  Asynchronous &all = asynchronous();
  Barrier &barrier = all.barriers[number];
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.phase++;
  barrier.missing = barrier.arrivals;
  auto &waiters = all.waiters;
  size_t kept = 0;
  for (const BarrierWaiter &waiter : waiters) {
    if (waiter.barrier == number && (barrier.phase & 1) != waiter.parity) {
      wake(waiter.thread);
    } else {
      waiters[kept++] = waiter;
    }
  }
  waiters.resize(kept);
}

}  // namespace

void barrier_init(void *at, unsigned arrivals) {
  auto *bytes = static_cast<char *>(at);
  if (uintptr_t(at) % 8 || bytes < shared_memory() || bytes + 8 > shared_memory() + shared_bytes()) {
    fail("initialises a barrier at %p", at);
  }
  auto &barriers = asynchronous().barriers;
  for (const Barrier &other : barriers) {
    if (other.at == at) fail("initialises a barrier twice");
  }
  if (arrivals == 0) fail("initialises a barrier for no arrivals");
  unsigned long long word = MARK + barriers.size();
  memcpy(at, &word, 8);
  barriers.push_back({at, arrivals, arrivals, 0, 0});
}

void barrier_arrive(void *at) { barrier_expect(at, 0); }

void barrier_expect(void *at, unsigned bytes) {
  unsigned number = number_of(at);
  Barrier &barrier = asynchronous().barriers[number];
  if (barrier.missing == 0) fail("arrives at a barrier at which all have arrived");
  barrier.bytes += bytes;
  barrier.missing--;
  settle(number);
}

void barrier_wait(const char *site, void *at, unsigned parity) {
  for (;;) {
    unsigned number = number_of(at);
    if ((asynchronous().barriers[number].phase & 1) != parity) return;
    asynchronous().waiters.push_back({thread_idx.x, number, parity});
    sleep_at(site);
  }
}

// ---- copies of boxes ----

void load_box(void *shared, const unsigned long long *map, unsigned column, unsigned row,
              void *barrier) {
  auto *to = static_cast<char *>(shared);
  Box box{to, reinterpret_cast<const char *>(map[0]), map[1], map[2], unsigned(map[3]), column, row,
          number_of(barrier), map[4]};
  if (uintptr_t(box.from) % 16 || box.inputs % CHUNK_INPUTS) {
    fail("copies from a matrix at %p with rows of %llu numbers", map[0], box.inputs);
  }
  if (box.box_rows == 0 || box.box_rows > 256) fail("copies a box of %u rows", box.box_rows);
  if (column % CHUNK_INPUTS) fail("copies a box from column %u on", column);
  size_t bytes = box.box_rows * ROW_BYTES;
  if (to < shared_memory() || to + bytes > shared_memory() + shared_bytes()) {
    fail("copies a box to %p, outside of shared memory", shared);
  }
  if (shared_address(to) % ALIGNMENT) fail("copies a box to address %u", shared_address(to));
  memset(to, POISON, bytes);
  asynchronous().boxes.push_back(box);
}

void finish_copy(unsigned pick) {
  Asynchronous &all = asynchronous();
  Box box = all.boxes[pick];
  all.boxes[pick] = all.boxes.back();
  all.boxes.pop_back();
  unsigned start = shared_address(box.to);
  size_t copied = 0;
  for (unsigned r = 0; r < box.box_rows; r++) {
    // Of two matrices, 8 rows of each in turn.
    unsigned long long row = box.row + (box.twin ? r / 16 * 8 + r % 8 : r);
    const char *from = box.from + (r / 8 % 2 ? box.twin : 0);
    for (unsigned c = 0; c < BOX_INPUTS; c += CHUNK_INPUTS) {
      char *to = at_address(swizzled(start + r * ROW_BYTES + c * 2));
      unsigned long long column = box.column + c;
      if (row < box.matrix_rows && column < box.inputs) {
        memcpy(to, from + (row * box.inputs + column) * 2, 16);
        copied += 16;
      } else {
        memset(to, 0, 16);
      }
    }
  }
  count_copied(copied);
  all.barriers[box.barrier].bytes -= box.box_rows * ROW_BYTES;
  settle(box.barrier);
}

// ---- products of a warpgroup ----

namespace {

constexpr unsigned LINES = 64, DEPTH = 16;

Warpgroup &warpgroup() {
  auto &warpgroups = asynchronous().warpgroups;
  if (warpgroups.empty()) warpgroups.resize(block_threads() / WARPGROUP);
  unsigned at = thread_idx.x / WARPGROUP;
  if (at >= warpgroups.size()) fail("is in no whole warpgroup");
  return warpgroups[at];
}

// Where a thread's sum is among the tiles.
float *place(SumsUnderWay &sums, unsigned thread, unsigned index) {
  unsigned warp = thread / 32, lane = thread % 32, j = index / 4, k = index % 4;
  unsigned line = k / 2 * 8 + lane / 4, column = lane % 4 * 2 + k % 2;
  return &sums.tiles[((warp * (sums.columns / 8) + j) * 16 + line) * 8 + column];
}

// The sums of this product: those of its thread's registers, of other threads that have asked, or new ones.
SumsUnderWay &sums_of(Warpgroup &group, WarpgroupProduct &product, unsigned thread, float *registers) {
  for (SumsUnderWay &sums : group.sums) {
    if (!sums.last[thread] || sums.registers[thread] != registers) continue;
    unsigned at = unsigned(&sums - group.sums.data());
    bool same = product.asked == 0 || product.sums == at;
    if (!same || sums.columns != product.columns) fail("adds to other sums than its warpgroup");
    product.sums = at;
    return sums;
  }
  size_t at = product.asked > 0 ? product.sums : 0;
  while (product.asked == 0 && at < group.sums.size() && group.sums[at].threads > 0) at++;
  if (at == group.sums.size()) group.sums.push_back(SumsUnderWay{});
  SumsUnderWay &sums = group.sums[at];
  product.sums = unsigned(at);
  sums.columns = product.columns;
  size_t count = size_t(LINES) * product.columns;
  if (sums.tiles.size() < count) sums.tiles.resize(count);
  sums.threads++;
  sums.registers[thread] = registers;
  if (product.add) {
    for (unsigned i = 0; i < product.columns / 2; i++) *place(sums, thread, i) = registers[i];
  }
  return sums;
}

// 16 positions of a row of an operand.
void read_row(unsigned long long rows, unsigned row, unsigned short (&numbers)[16]) {
  unsigned start = unsigned(rows & 0x3fff) << 4, stride = unsigned(rows >> 32 & 0x3fff) << 4;
  if (rows >> 62 != 1) fail("multiplies rows whose chunks are not exchanged within 128 bytes");
  unsigned address = start + row / 8 * stride + row % 8 * ROW_BYTES, base = shared_address(shared_memory());
  for (unsigned half = 0; half < 2; half++) {
    unsigned from = swizzled(address + 16 * half);
    if (from < base || from + 16 > base + shared_bytes()) {
      fail("multiplies what is at address %u, outside of shared memory", from);
    }
    memcpy(numbers + 8 * half, at_address(from), 16);
  }
}

void multiply(Warpgroup &group) {
  WarpgroupProduct product = group.products.front();
  group.products.pop_front();
  unsigned short left[LINES / 16][16][DEPTH], right[256 / 8][8][DEPTH];
  for (unsigned row = 0; row < LINES; row++) read_row(product.a, row, left[row / 16][row % 16]);
  for (unsigned row = 0; row < product.columns; row++) read_row(product.b, row, right[row / 8][row % 8]);
  unsigned wide = product.columns / 8;
  float *tile = group.sums[product.sums].tiles.data();
  if (!product.add) std::fill_n(tile, LINES * product.columns, 0.0f);
  for (unsigned i = 0; i < LINES / 16; i++) {
    for (unsigned j = 0; j < wide; j++, tile += 16 * 8) {
      add_products(left[i], right[j], *reinterpret_cast<float(*)[16][8]>(tile));
    }
  }
  group.done++;
  size_t kept = 0;
  for (const ProductWaiter &waiter : group.waiters) {
    if (waiter.done <= group.done) {
      wake(waiter.thread);
    } else {
      group.waiters[kept++] = waiter;
    }
  }
  group.waiters.resize(kept);
}

}  // namespace

void wgmma_fence() { warpgroup().fenced[thread_idx.x % WARPGROUP] = true; }

void wgmma(float *registers, unsigned columns, unsigned long long a, unsigned long long b, bool add) {
  Warpgroup &group = warpgroup();
  unsigned thread = thread_idx.x % WARPGROUP;
  if (!group.fenced[thread]) fail("multiplies without a fence after its sums were its own");
  unsigned number = group.asked[thread]++, at = number - group.done;
  if (at == group.products.size()) group.products.push_back({columns, 0, 0, a, b, add});
  WarpgroupProduct &product = group.products[at];
  if (product.columns != columns || product.a != a || product.b != b || product.add != add) {
    fail("asks for another product than its warpgroup");
  }
  SumsUnderWay &sums = sums_of(group, product, thread, registers);
  sums.last[thread] = number + 1;
  memset(registers, POISON, columns / 2 * sizeof(float));
  if (++product.asked == WARPGROUP) {
    group.ready++;
    asynchronous().products++;
  }
}

void wgmma_commit() {
  Warpgroup &group = warpgroup();
  unsigned thread = thread_idx.x % WARPGROUP;
  group.ends[thread][group.groups[thread]++ % Warpgroup::GROUPS] = group.asked[thread];
}

void wgmma_wait(unsigned groups) {
  unsigned thread = thread_idx.x % WARPGROUP, committed = warpgroup().groups[thread];
  if (groups >= Warpgroup::GROUPS) fail("waits for all but %u groups of products", groups);
  if (committed <= groups) return;
  unsigned wanted = warpgroup().ends[thread][(committed - 1 - groups) % Warpgroup::GROUPS];
  if (warpgroup().done < wanted) {
    warpgroup().waiters.push_back({thread_idx.x, wanted});
    sleep_at("wgmma_wait");
  }
  Warpgroup &group = warpgroup();
  for (SumsUnderWay &sums : group.sums) {
    if (!sums.last[thread] || sums.last[thread] > wanted) continue;
    // Its registers are its own again.
    sums.last[thread] = 0;
    sums.threads--;
    group.fenced[thread] = false;
    float *registers = sums.registers[thread];
    for (unsigned i = 0; i < sums.columns / 2; i++) {
      if (__float_as_uint(registers[i]) != 0xffffffffu) fail("writes sums of a product that is under way");
      registers[i] = *place(sums, thread, i);
    }
  }
}

void finish_product(unsigned pick) {
  for (Warpgroup &group : asynchronous().warpgroups) {
    if (pick >= group.ready) {
      pick -= group.ready;
      continue;
    }
    group.ready--;
    asynchronous().products--;
    multiply(group);
    return;
  }
}

void require_waited() {
  for (const Warpgroup &group : asynchronous().warpgroups) {
    for (const SumsUnderWay &sums : group.sums) {
      if (sums.threads > 0) fail("the block ends before a product that it asked for");
    }
  }
}

}  // namespace emulator
