// The part of CUDA that the kernels use, on the CPU: one fiber per CUDA thread, switched at
// barriers and warp collectives in a shuffled order. See README.md beside kernels/.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint2 {
  unsigned x, y;
};

struct uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

struct Index {
  unsigned x, y, z;
};

// Where the running fiber is.
// (__thread: thread_local would ask at each use whether it is initialised.)
extern __thread Index thread_idx, block_idx, block_dim, grid_dim;

// The block's dynamic shared memory.
char *shared_memory();

// Ends the process: the kernel did what no GPU would forgive.
[[noreturn]] void fail(const char *format, ...);

void sync_threads(const char *site);

// Called by all 32 lanes of a warp with the same `apply`: the last one runs it on all their data,
// then all go on.
void warp_collective(const char *site, void *data, void (*apply)(void *const *lanes));

// Fails unless 16 aligned bytes of the block's shared memory begin there.
void require_shared(const void *address);

// sums[r][c] += the 16 products of left[r] and right[c], bf16, as tensor cores add them.
void add_products(const unsigned short (&left)[16][16], const unsigned short (&right)[8][16],
                  float (&sums)[16][8]);
void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
unsigned transpose(unsigned pair);
void load_transposed(unsigned (&pairs)[4], const void *row);
void copy_async(void *shared, const void *global, bool valid);
void copy_commit();
void copy_wait(unsigned groups);
void wait_for_previous();
void start_next();

// Hopper's asynchronous instructions; `map` is a TileMap's words.
unsigned shared_address(const void *shared);
void barrier_init(void *barrier, unsigned arrivals);
void barrier_arrive(void *barrier);
void barrier_expect(void *barrier, unsigned bytes);
void barrier_wait(const char *site, void *barrier, unsigned parity);
void load_box(void *shared, const unsigned long long *map, unsigned column, unsigned row,
              void *barrier);
void wgmma(float *sums, unsigned columns, unsigned long long a, unsigned long long b, bool add);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned groups);

inline void require_all(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp collective without all lanes: mask %x", mask);
}

template <class T>
struct Shuffle {
  T value, result;
  unsigned from;
};

template <class T>
T shuffle(const char *site, unsigned mask, T value, unsigned from) {
  require_all(mask);
  Shuffle<T> mine{value, value, from};
  warp_collective(site, &mine, [](void *const *lanes) {
    for (unsigned lane = 0; lane < 32; lane++) {
      auto *to = static_cast<Shuffle<T> *>(lanes[lane]);
      to->result = static_cast<Shuffle<T> *>(lanes[to->from % 32])->value;
    }
  });
  return mine.result;
}

inline unsigned ballot(const char *site, unsigned mask, bool vote) {
  require_all(mask);
  struct Vote {
    bool vote;
    unsigned result;
  } mine{vote, 0};
  warp_collective(site, &mine, [](void *const *lanes) {
    unsigned all = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
      all |= unsigned(static_cast<Vote *>(lanes[lane])->vote) << lane;
    }
    for (unsigned lane = 0; lane < 32; lane++) static_cast<Vote *>(lanes[lane])->result = all;
  });
  return mine.result;
}

// For each lane, the lanes that have the same value.
inline unsigned match_any(const char *site, unsigned mask, unsigned value) {
  require_all(mask);
  warp_collective(site, &value, [](void *const *lanes) {
    unsigned values[32];
    for (unsigned lane = 0; lane < 32; lane++) values[lane] = *static_cast<unsigned *>(lanes[lane]);
    for (unsigned lane = 0; lane < 32; lane++) {
      unsigned same = 0;
      for (unsigned other = 0; other < 32; other++) {
        same |= unsigned(values[other] == values[lane]) << other;
      }
      *static_cast<unsigned *>(lanes[lane]) = same;
    }
  });
  return value;
}

// The least and the greatest of all lanes' values.
struct Range {
  unsigned least, greatest;
};

inline Range range(const char *site, unsigned mask, unsigned value) {
  require_all(mask);
  Range mine{value, value};
  warp_collective(site, &mine, [](void *const *lanes) {
    Range all = *static_cast<Range *>(lanes[0]);
    for (unsigned lane = 1; lane < 32; lane++) {
      unsigned value = static_cast<Range *>(lanes[lane])->least;
      all.least = value < all.least ? value : all.least;
      all.greatest = value > all.greatest ? value : all.greatest;
    }
    for (unsigned lane = 0; lane < 32; lane++) *static_cast<Range *>(lanes[lane]) = all;
  });
  return mine;
}

}  // namespace emulator

#define threadIdx emulator::thread_idx
#define blockIdx emulator::block_idx
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim

#define EMULATOR_TEXT_(x) #x
#define EMULATOR_TEXT(x) EMULATOR_TEXT_(x)
#define EMULATOR_SITE __FILE__ ":" EMULATOR_TEXT(__LINE__)
#define __syncthreads() emulator::sync_threads(EMULATOR_SITE)
#define __syncwarp() \
  emulator::warp_collective(EMULATOR_SITE, nullptr, [](void *const *) {})
#define __shfl_sync(mask, value, from) emulator::shuffle(EMULATOR_SITE, mask, value, from)
#define __shfl_xor_sync(mask, value, distance) \
  emulator::shuffle(EMULATOR_SITE, mask, value, emulator::thread_idx.x % 32 ^ (distance))
#define __shfl_up_sync(mask, value, distance)                                     \
  emulator::shuffle(EMULATOR_SITE, mask, value,                                   \
                    emulator::thread_idx.x % 32 >= (distance)                     \
                        ? emulator::thread_idx.x % 32 - (distance)                \
                        : emulator::thread_idx.x % 32)
#define __ballot_sync(mask, vote) emulator::ballot(EMULATOR_SITE, mask, vote)
#define __match_any_sync(mask, value) emulator::match_any(EMULATOR_SITE, mask, value)
#define __reduce_min_sync(mask, value) emulator::range(EMULATOR_SITE, mask, value).least
#define __reduce_max_sync(mask, value) emulator::range(EMULATOR_SITE, mask, value).greatest

#define SHARED(T, name) T *name = reinterpret_cast<T *>(emulator::shared_memory())

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

// Fibers are switched at barriers only.
inline unsigned atomicAdd(unsigned *address, unsigned value) {
  unsigned before = *address;
  *address += value;
  return before;
}
