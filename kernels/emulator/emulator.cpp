// Runs a kernel's blocks in a shuffled order, and the threads of a block as fibers that switch at
// barriers and warp collectives, the next one drawn at random among those of all blocks alive; what they
// have asked for and is to happen later (hopper.cpp) is drawn with them. Shared memory is poisoned before
// each block, and so is the target of an asynchronous copy until it is waited for: what reads too early
// reads NaNs. A barrier that not all threads reach ends the process.
//
// Blocks run one after another, but for those of an early launch that begin before the launch in
// front of it: they sleep where they wait for it, and go on together once it is done.

#include "hopper.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

__thread Index thread_idx, block_idx, block_dim, grid_dim;

namespace {

constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t SHARED_BYTES = 227 * 1024;  // an H100's limit for one block
constexpr size_t BEYOND_SHARED_BYTES = 4096;  // watched for writes that run over
constexpr unsigned char POISON = 0xff;  // NaN as f32, f64 and bf16

// ---- switching between stacks ----

#if defined(__x86_64__)
struct Context {
  void *stack_pointer = nullptr;
};

// Saves the callee's registers on the old stack and takes them from the new one.
extern "C" void trimtab_switch(void **save, void *load);
asm(R"(
.text
.globl trimtab_switch
.hidden trimtab_switch
.type trimtab_switch, @function
trimtab_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size trimtab_switch, .-trimtab_switch
)");

void switch_context(Context &from, Context &to) {
  trimtab_switch(&from.stack_pointer, to.stack_pointer);
}

// A stack on which `entry` begins when it is switched to.
void prepare(Context &context, char *stack, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(stack + STACK_BYTES) & ~uintptr_t(15);
  auto *words = reinterpret_cast<uintptr_t *>(top);
  *--words = 0;  // where entry would return to; keeps the stack aligned as after a call
  *--words = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; i++) *--words = 0;
  context.stack_pointer = words;
}
#else
struct Context {
  ucontext_t context;
};

void switch_context(Context &from, Context &to) { swapcontext(&from.context, &to.context); }

void prepare(Context &context, char *stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = STACK_BYTES;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
#endif

// ---- launches, blocks and fibers ----

struct Copy {
  void *to;
  const void *from;
  bool valid;
  unsigned group;
};

struct Fiber {
  Context context;
  char *stack = nullptr;
  unsigned thread = 0;
  bool started = false;
  bool waited = false;  // for the launch in front
  const char *waits_at = nullptr;
  std::deque<Copy> copies;
  std::vector<char> taken;  // what copies have read before the launch in front
  unsigned group = 0;  // of the next copy
};

struct Warp {
  void *lanes[32];
  unsigned arrived = 0;
  const char *site = nullptr;
};

struct Launch;

// A block that is alive, or the room for one.
struct Block {
  Launch *launch = nullptr;
  Index index{};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned> runnable;
  std::vector<unsigned> asleep;  // until the launch in front is done
  unsigned threads = 0, ended = 0, at_barrier = 0;
  const char *barrier_site = nullptr;
  char *shared = nullptr;
  Asynchronous asynchronous;

  ~Block() {
    if (shared) munmap(shared, SHARED_BYTES + BEYOND_SHARED_BYTES);
  }
};

struct Launch {
  const char *kernel;
  void (*run)(const void *);
  const void *params;
  bool early;  // its threads must wait for the launch in front
  Index grid;
  unsigned threads;
  size_t shared_bytes;
  uint64_t random;
  bool ahead;  // of a launch that is not done
  std::vector<unsigned> blocks;  // still to begin, the last one first
  std::vector<std::unique_ptr<Block>> alive;
  uint64_t copied_bytes;
  // Copies of boxes, or products of warpgroups, happen as late as may be.
  bool late_copies, late_products;
  unsigned shared_address;  // of the shared memory's first byte

  // xorshift64*
  unsigned below(unsigned bound) {
    random ^= random >> 12;
    random ^= random << 25;
    random ^= random >> 27;
    return unsigned(((random * 0x2545F4914F6CDD1Dull) >> 32) * bound >> 32);
  }
};

// What a host thread keeps from launch to launch.
struct State {
  Context scheduler;
  std::vector<char *> stacks;                  // not in use
  std::vector<std::unique_ptr<Block>> blocks;  // not in use
  const void *host_stack = nullptr;
  size_t host_stack_bytes = 0;

  ~State() {
    for (char *stack : stacks) munmap(stack, STACK_BYTES);
  }
};

// The host thread's own; made at its first launch.
thread_local State host_state;
__thread State *state;
// Whose fiber runs, or the launch in hand.
__thread Launch *launch;
__thread Block *block;
__thread Fiber *current;

char *map(size_t bytes) {
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for %zu bytes of the emulator's own", bytes);
  return static_cast<char *>(memory);
}

void to_scheduler(bool for_good) {
  Fiber &fiber = *current;
#if defined(__SANITIZE_ADDRESS__)
  void *fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, state->host_stack,
                                 state->host_stack_bytes);
#else
  (void)for_good;
#endif
  switch_context(fiber.context, state->scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &state->host_stack, &state->host_stack_bytes);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &state->host_stack, &state->host_stack_bytes);
#endif
  launch->run(launch->params);
  if (launch->early && !current->waited) fail("ends and has not waited for the launch in front");
  block->ended++;
  current->started = false;
  to_scheduler(true);
}

__forceinline__ void resume(Fiber &fiber) {
  current = &fiber;
  thread_idx = {fiber.thread, 0, 0};
  if (!fiber.started) {
    if (state->stacks.empty()) state->stacks.push_back(map(STACK_BYTES));
    fiber.stack = state->stacks.back();
    state->stacks.pop_back();
    fiber.started = true;
    prepare(fiber.context, fiber.stack, fiber_main);
  }
  fiber.waits_at = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  void *fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, STACK_BYTES);
#endif
  switch_context(state->scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  if (!fiber.started) {
#if defined(__SANITIZE_ADDRESS__)
    // A fiber never returns from its first function, so that one's marks are still there.
    __asan_unpoison_memory_region(fiber.stack, STACK_BYTES);
#endif
    state->stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
  }
}

void enter(Block *other) {
  block = other;
  block_idx = block->index;
}

// Begins the launch's next block: all of its fibers can run.
void begin_block() {
  if (state->blocks.empty()) state->blocks.push_back(std::make_unique<Block>());
  launch->alive.push_back(std::move(state->blocks.back()));
  state->blocks.pop_back();
  enter(launch->alive.back().get());
  unsigned at = launch->blocks.back();
  launch->blocks.pop_back();
  Index grid = launch->grid;
  block->index = block_idx = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
  if (block->launch != launch) {
    if (!block->shared) block->shared = map(SHARED_BYTES + BEYOND_SHARED_BYTES);
    memset(block->shared + launch->shared_bytes, POISON, BEYOND_SHARED_BYTES);
    block->launch = launch;
    block->threads = launch->threads;
    block->fibers.resize(launch->threads);
    block->warps.resize(launch->threads / 32);
  }
  memset(block->shared, POISON, launch->shared_bytes);
  block->ended = block->at_barrier = 0;
  block->runnable.clear();
  block->asleep.clear();
  block->asynchronous.clear();
  for (unsigned thread = 0; thread < block->threads; thread++) {
    Fiber &fiber = block->fibers[thread];
    fiber.thread = thread;
    fiber.waited = false;
    fiber.copies.clear();
    fiber.group = 0;
    block->runnable.push_back(thread);
  }
  for (Warp &warp : block->warps) warp.arrived = 0;
}

__forceinline__ void resume_at(Block &block, unsigned pick) {
  unsigned thread = block.runnable[pick];
  block.runnable[pick] = block.runnable.back();
  block.runnable.pop_back();
  resume(block.fibers[thread]);
}

// Lets one of the alive blocks' fibers go on, or one thing happen that they have asked for. False if there is nothing.
bool step() {
  size_t runnable = 0, copies = 0, products = 0;
  for (auto &one : launch->alive) {
    runnable += one->runnable.size();
    copies += one->asynchronous.boxes.size();
    products += one->asynchronous.products;
  }
  if (launch->late_copies && runnable > 0) copies = 0;
  if (launch->late_products && runnable + copies > 0) products = 0;
  if (runnable + copies + products == 0) return false;
  size_t pick = launch->below(unsigned(runnable + copies + products));
  // The block that has the pick-th of what `count` counts.
  auto enter_at = [&](auto count) {
    for (auto &one : launch->alive) {
      if (pick < count(*one)) return enter(one.get());
      pick -= count(*one);
    }
  };
  if (pick < runnable) {
    enter_at([](Block &one) { return one.runnable.size(); });
    resume_at(*block, unsigned(pick));
    return true;
  }
  pick -= runnable;
  bool copy = pick < copies;
  if (copy) {
    enter_at([](Block &one) { return one.asynchronous.boxes.size(); });
  } else {
    pick -= copies;
    enter_at([](Block &one) { return size_t(one.asynchronous.products); });
  }
  if (block->ended == block->threads) fail("the block ends before %s that it asked for", copy ? "a copy" : "a product");
  copy ? finish_copy(unsigned(pick)) : finish_product(unsigned(pick));
  return true;
}

// Until no fiber can go on and nothing is under way.
void run_alive() {
  if (launch->alive.size() == 1) {
    Block &only = *launch->alive[0];
    Launch &draws = *launch;
    do {
      while (!only.runnable.empty() && only.asynchronous.idle()) {
        resume_at(only, draws.below(unsigned(only.runnable.size())));
      }
    } while (step());
    return;
  }
  while (step()) {
  }
}

// All blocks alive must have ended; their room is free again.
void end_alive() {
  for (auto &one : launch->alive) {
    enter(one.get());
    for (Fiber &fiber : block->fibers) {
      if (block->ended == block->threads) break;
      if (!fiber.waits_at) continue;
      fail("thread %u waits for ever at %s; %u of %u threads have ended", fiber.thread,
           fiber.waits_at, block->ended, block->threads);
    }
    require_waited();
    state->blocks.push_back(std::move(one));
  }
  launch->alive.clear();
}

// Equal literals are mostly, but not always, one object.
bool differ(const char *a, const char *b) { return a != b && strcmp(a, b) != 0; }

void execute(const Copy &copy) {
  if (copy.valid) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
}

// ---- reading and writing outside of all buffers ----

struct sigaction previous_action;

void on_segmentation_fault(int signal, siginfo_t *info, void *context) {
  if (current) {
    fail("reads or writes at address %p, outside of all buffers", info->si_addr);
  }
  // Not ours: whoever was there before, or the default.
  if (previous_action.sa_flags & SA_SIGINFO && previous_action.sa_sigaction) {
    previous_action.sa_sigaction(signal, info, context);
    return;
  }
  std::signal(signal, SIG_DFL);
  raise(signal);
}

void install_handler() {
  static bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_segmentation_fault;
    // On the alternative stack, if the thread has one: the fiber's may be what is broken.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_action);
    return true;
  }();
  (void)installed;
}

}  // namespace

char *shared_memory() { return block->shared; }

unsigned shared_address(const void *shared) {
  return launch->shared_address + unsigned(static_cast<const char *>(shared) - block->shared);
}

void sleep_at(const char *site) {
  current->waits_at = site;
  to_scheduler(false);
}

void wake(unsigned thread) { block->runnable.push_back(thread); }

Asynchronous &asynchronous() { return block->asynchronous; }
unsigned block_threads() { return block->threads; }
size_t shared_bytes() { return launch->shared_bytes; }
void count_copied(size_t bytes) { launch->copied_bytes += bytes; }

void fail(const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fprintf(stderr, "emulator: kernel %s, block (%u, %u, %u), thread %u: %s\n",
          launch ? launch->kernel : "none", block_idx.x, block_idx.y, block_idx.z, thread_idx.x,
          text);
  fflush(stderr);
  abort();
}

void sync_threads(const char *site) {
  if (block->at_barrier == 0) {
    block->barrier_site = site;
  } else if (differ(block->barrier_site, site)) {
    fail("is at the barrier %s while others are at %s", site, block->barrier_site);
  }
  block->at_barrier++;
  if (block->at_barrier + block->ended > block->threads) fail("too many threads at %s", site);
  if (block->at_barrier < block->threads) {
    sleep_at(site);
    return;
  }
  block->at_barrier = 0;
  for (unsigned thread = 0; thread < block->threads; thread++) {
    if (thread != thread_idx.x) block->runnable.push_back(thread);
  }
  // The last one to arrive has no right to go first.
  block->runnable.push_back(thread_idx.x);
  sleep_at(nullptr);
}

void warp_collective(const char *site, void *data, void (*apply)(void *const *lanes)) {
  unsigned thread = thread_idx.x;
  Warp &warp = block->warps[thread / 32];
  if (warp.arrived == 0) {
    warp.site = site;
  } else if (differ(warp.site, site)) {
    fail("is at %s while lanes of its warp are at %s", site, warp.site);
  }
  warp.lanes[thread % 32] = data;
  if (++warp.arrived < 32) {
    sleep_at(site);
    return;
  }
  warp.arrived = 0;
  apply(warp.lanes);
  unsigned first = thread / 32 * 32;
  for (unsigned lane = first; lane < first + 32; lane++) block->runnable.push_back(lane);
  sleep_at(nullptr);
}

void require_shared(const void *address) {
  auto *at = static_cast<const char *>(address);
  if (at < block->shared || at + 16 > block->shared + launch->shared_bytes) {
    fail("takes %p for 16 bytes of shared memory", address);
  }
  if (uintptr_t(address) % 16) fail("takes %p for aligned to 16 bytes", address);
}

void copy_async(void *shared, const void *global, bool valid) {
  require_shared(shared);
  if (valid && uintptr_t(global) % 16) {
    fail("copies 16 bytes from %p, which is not aligned", global);
  }
  if (valid) launch->copied_bytes += 16;
  memset(shared, POISON, 16);
  current->copies.push_back({shared, global, valid, current->group});
}

void copy_commit() { current->group++; }

void copy_wait(unsigned groups) {
  Fiber &fiber = *current;
  while (!fiber.copies.empty() && fiber.copies.front().group + groups < fiber.group) {
    execute(fiber.copies.front());
    fiber.copies.pop_front();
  }
}

void wait_for_previous() {
  current->waited = true;
  if (!launch->ahead) return;
  // What was asked for before the wait may have been read at once.
  current->taken.resize(16 * current->copies.size());
  char *taken = current->taken.data();
  for (Copy &copy : current->copies) {
    if (copy.valid) memcpy(taken, copy.from, 16);
    copy.from = taken;
    taken += 16;
  }
  block->asleep.push_back(thread_idx.x);
  sleep_at("wait_for_previous");
}

void start_next() {
  if (!current->waited) fail("starts the next launch before it has waited for the one in front");
}

}  // namespace emulator

// ---- what Rust calls ----

// A launch of `run(params)` on every thread of the grid, which trimtab_emulator_finish ends; until
// then the same host thread may end the launch in front of it. If `ahead` of that one, some blocks run
// now, up to where they wait for it. The same seed gives the same order.
extern "C" void *trimtab_emulator_begin(const char *kernel, void (*run)(const void *), bool early,
                                        const void *params, const unsigned *grid, unsigned threads,
                                        size_t shared_bytes, uint64_t seed, bool ahead) {
  using namespace emulator;
  install_handler();
  state = &host_state;
  launch = new Launch{kernel, run, params, early, {grid[0], grid[1], grid[2]}, threads, shared_bytes,
                      seed * 0x9E3779B97F4A7C15ull | 1, ahead, {}, {}, 0, false, false, 0};
  launch->late_copies = launch->below(2);
  launch->late_products = launch->below(2);
  // A GPU keeps the first bytes to itself, and may keep a few more.
  launch->shared_address = 1024 + 16 * launch->below(64);
  current = nullptr;
  block_idx = {0, 0, 0};
  if (threads == 0 || threads % 32 || threads > 1024) fail("%u threads a block", threads);
  if (shared_bytes > SHARED_BYTES) fail("%zu bytes of shared memory", shared_bytes);
  auto &blocks = launch->blocks;
  blocks.resize(size_t(grid[0]) * grid[1] * grid[2]);
  for (unsigned i = 0; i < blocks.size(); i++) blocks[i] = i;
  for (unsigned i = unsigned(blocks.size()); i > 1; i--) {
    std::swap(blocks[i - 1], blocks[launch->below(i)]);
  }
  if (ahead) {
    block_dim = {threads, 1, 1};
    grid_dim = launch->grid;
    for (unsigned some = 1 + launch->below(3); some > 0 && !blocks.empty(); some--) begin_block();
    run_alive();
    launch->ahead = false;
    current = nullptr;
  }
  return launch;
}

// Runs what is left of a launch. Returns how many bytes its asynchronous copies have read.
extern "C" uint64_t trimtab_emulator_finish(void *begun) {
  using namespace emulator;
  state = &host_state;
  launch = static_cast<Launch *>(begun);
  block_dim = {launch->threads, 1, 1};
  grid_dim = launch->grid;
  if (!launch->alive.empty()) {
    for (auto &one : launch->alive) {
      std::swap(one->runnable, one->asleep);
      enter(one.get());
    }
    run_alive();
    end_alive();
  }
  while (!launch->blocks.empty()) {
    begin_block();
    run_alive();
    end_alive();
  }
  for (auto &one : state->blocks) {
    if (one->launch != launch) continue;
    one->launch = nullptr;
    for (size_t i = 0; i < BEYOND_SHARED_BYTES; i++) {
      if (static_cast<unsigned char>(one->shared[launch->shared_bytes + i]) != POISON) {
        fail("writes %zu bytes beyond %zu bytes of shared memory", i, launch->shared_bytes);
      }
    }
  }
  uint64_t copied_bytes = launch->copied_bytes;
  delete launch;
  launch = nullptr;
  current = nullptr;
  return copied_bytes;
}

// Memory between two pages that cannot be touched, ending at the second one (but for what keeps it
// aligned to 16 bytes); all zeros. What lies before it in its first page is watched for writes.
namespace {

constexpr size_t PAGE = 4096;
constexpr unsigned char WATCHED = 0xa5;

[[maybe_unused]] size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

}  // namespace

extern "C" void *trimtab_emulator_alloc(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  void *memory = nullptr;
  return posix_memalign(&memory, 16, bytes ? bytes : 1) == 0 ? memset(memory, 0, bytes) : nullptr;
#else
  size_t size = (bytes + 15) / 16 * 16, pages = whole_pages(size);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *start = mmap(nullptr, pages + 2 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  char *first = static_cast<char *>(start) + PAGE;
  mprotect(start, PAGE, PROT_NONE);
  mprotect(first + pages, PAGE, PROT_NONE);
  memset(first, WATCHED, pages - size);
  return first + pages - size;
#endif
}

extern "C" void trimtab_emulator_free(void *memory, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  (void)bytes;
  free(memory);
#else
  size_t size = (bytes + 15) / 16 * 16, pages = whole_pages(size);
  auto *first = static_cast<unsigned char *>(memory) + size - pages;
  for (size_t i = 0; i < pages - size; i++) {
    if (first[i] != WATCHED) {
      emulator::fail("a kernel wrote %zu bytes before a buffer of %zu bytes", pages - size - i,
                     bytes);
    }
  }
  munmap(first - PAGE, pages + 2 * PAGE);
#endif
}
