// Runs a kernel's blocks one after another, in a shuffled order, and the threads of a block as
// fibers that switch at barriers and warp collectives, the next one drawn at random. Shared memory
// is poisoned before each block, and so is the target of an asynchronous copy until it is waited
// for: what reads too early reads NaNs. A barrier that not all threads reach ends the process.

#include "emulator.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
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

// ---- one block ----

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
  const char *waits_at = nullptr;
  std::deque<Copy> copies;
  unsigned group = 0;  // of the next copy
};

struct Warp {
  void *lanes[32];
  unsigned arrived = 0;
  const char *site = nullptr;
};

struct Launch {
  const char *kernel = nullptr;
  void (*run)(const void *) = nullptr;
  const void *params = nullptr;
};

struct State {
  Launch launch;
  uint64_t random = 1;
  Context scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned> runnable;
  std::vector<char *> stacks;  // not in use
  unsigned threads = 0, ended = 0, at_barrier = 0;
  const char *barrier_site = nullptr;
  Fiber *current = nullptr;
  char *shared = nullptr;
  const void *host_stack = nullptr;
  size_t host_stack_bytes = 0;
  size_t shared_bytes = 0;
  uint64_t copied_bytes = 0;

  // xorshift64*
  unsigned below(unsigned bound) {
    random ^= random >> 12;
    random ^= random << 25;
    random ^= random >> 27;
    return unsigned(((random * 0x2545F4914F6CDD1Dull) >> 32) * bound >> 32);
  }

  ~State() {
    for (char *stack : stacks) {
#if defined(__SANITIZE_ADDRESS__)
      // A fiber never returns from its first function, so that one's marks are still there.
      __asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
      munmap(stack, STACK_BYTES);
    }
    if (shared) munmap(shared, SHARED_BYTES + BEYOND_SHARED_BYTES);
  }
};

// The host thread's own; made at its first launch.
thread_local State host_state;
__thread State *state;

char *map(size_t bytes) {
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for %zu bytes of the emulator's own", bytes);
  return static_cast<char *>(memory);
}

void to_scheduler(bool for_good) {
  Fiber &fiber = *state->current;
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
  state->launch.run(state->launch.params);
  state->ended++;
  state->current->started = false;
  to_scheduler(true);
}

void resume(Fiber &fiber) {
  state->current = &fiber;
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
    state->stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
  }
}

void wait_at(const char *site) {
  state->current->waits_at = site;
  to_scheduler(false);
}

void run_block() {
  memset(state->shared, POISON, state->shared_bytes);
  state->ended = state->at_barrier = 0;
  state->runnable.clear();
  for (unsigned thread = 0; thread < state->threads; thread++) {
    Fiber &fiber = state->fibers[thread];
    fiber.thread = thread;
    fiber.copies.clear();
    fiber.group = 0;
    state->runnable.push_back(thread);
  }
  for (Warp &warp : state->warps) warp.arrived = 0;
  while (!state->runnable.empty()) {
    unsigned pick = state->below(unsigned(state->runnable.size()));
    unsigned thread = state->runnable[pick];
    state->runnable[pick] = state->runnable.back();
    state->runnable.pop_back();
    resume(state->fibers[thread]);
  }
  if (state->ended == state->threads) return;
  for (Fiber &fiber : state->fibers) {
    if (!fiber.waits_at) continue;
    fail("thread %u waits for ever at %s; %u of %u threads have ended", fiber.thread,
         fiber.waits_at, state->ended, state->threads);
  }
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
  if (state && state->current) {
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

char *shared_memory() { return state->shared; }

void fail(const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fprintf(stderr, "emulator: kernel %s, block (%u, %u, %u), thread %u: %s\n",
          state && state->launch.kernel ? state->launch.kernel : "none", block_idx.x, block_idx.y, block_idx.z,
          thread_idx.x, text);
  fflush(stderr);
  abort();
}

void sync_threads(const char *site) {
  if (state->at_barrier == 0) {
    state->barrier_site = site;
  } else if (differ(state->barrier_site, site)) {
    fail("is at the barrier %s while others are at %s", site, state->barrier_site);
  }
  state->at_barrier++;
  if (state->at_barrier + state->ended > state->threads) fail("too many threads at %s", site);
  if (state->at_barrier < state->threads) {
    wait_at(site);
    return;
  }
  state->at_barrier = 0;
  for (unsigned thread = 0; thread < state->threads; thread++) {
    if (thread != thread_idx.x) state->runnable.push_back(thread);
  }
  // The last one to arrive has no right to go first.
  state->runnable.push_back(thread_idx.x);
  wait_at(nullptr);
}

void warp_collective(const char *site, void *data, void (*apply)(void *const *lanes)) {
  unsigned thread = thread_idx.x;
  Warp &warp = state->warps[thread / 32];
  if (warp.arrived == 0) {
    warp.site = site;
  } else if (differ(warp.site, site)) {
    fail("is at %s while lanes of its warp are at %s", site, warp.site);
  }
  warp.lanes[thread % 32] = data;
  if (++warp.arrived < 32) {
    wait_at(site);
    return;
  }
  warp.arrived = 0;
  apply(warp.lanes);
  unsigned first = thread / 32 * 32;
  for (unsigned lane = first; lane < first + 32; lane++) state->runnable.push_back(lane);
  wait_at(nullptr);
}

void require_shared(const void *address) {
  auto *at = static_cast<const char *>(address);
  if (at < state->shared || at + 16 > state->shared + state->shared_bytes) {
    fail("takes %p for 16 bytes of shared memory", address);
  }
  if (uintptr_t(address) % 16) fail("takes %p for aligned to 16 bytes", address);
}

void copy_async(void *shared, const void *global, bool valid) {
  require_shared(shared);
  if (valid && uintptr_t(global) % 16) {
    fail("copies 16 bytes from %p, which is not aligned", global);
  }
  if (valid) state->copied_bytes += 16;
  memset(shared, POISON, 16);
  state->current->copies.push_back({shared, global, valid, state->current->group});
}

void copy_commit() { state->current->group++; }

void copy_wait(unsigned groups) {
  Fiber &fiber = *state->current;
  while (!fiber.copies.empty() && fiber.copies.front().group + groups < fiber.group) {
    execute(fiber.copies.front());
    fiber.copies.pop_front();
  }
}

void wait_for_previous() {}

void start_next() {}

}  // namespace emulator

// ---- what Rust calls ----

// Runs `run(params)` on every thread of the grid. The same seed gives the same order. Returns how
// many bytes asynchronous copies have read.
extern "C" uint64_t trimtab_emulator_launch(const char *kernel, void (*run)(const void *),
                                            const void *params, const unsigned *grid,
                                            unsigned threads, size_t shared_bytes, uint64_t seed) {
  using namespace emulator;
  install_handler();
  state = &host_state;
  state->launch = {kernel, run, params};
  state->copied_bytes = 0;
  state->random = seed * 0x9E3779B97F4A7C15ull | 1;
  state->threads = threads;
  state->fibers.resize(threads);
  state->warps.resize(threads / 32);
  if (!state->shared) state->shared = map(SHARED_BYTES + BEYOND_SHARED_BYTES);
  state->shared_bytes = shared_bytes;
  block_dim = {threads, 1, 1};
  grid_dim = {grid[0], grid[1], grid[2]};
  block_idx = {0, 0, 0};
  if (threads == 0 || threads % 32 || threads > 1024) fail("%u threads a block", threads);
  if (shared_bytes > SHARED_BYTES) fail("%zu bytes of shared memory", shared_bytes);
  memset(state->shared + shared_bytes, POISON, BEYOND_SHARED_BYTES);
  std::vector<unsigned> blocks(size_t(grid[0]) * grid[1] * grid[2]);
  for (unsigned i = 0; i < blocks.size(); i++) blocks[i] = i;
  for (unsigned i = unsigned(blocks.size()); i > 1; i--) {
    std::swap(blocks[i - 1], blocks[state->below(i)]);
  }
  for (unsigned block : blocks) {
    block_idx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
    run_block();
  }
  for (size_t i = 0; i < BEYOND_SHARED_BYTES; i++) {
    if (static_cast<unsigned char>(state->shared[shared_bytes + i]) != POISON) {
      fail("writes %zu bytes beyond %zu bytes of shared memory", i, shared_bytes);
    }
  }
  state->current = nullptr;
  return state->copied_bytes;
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
