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
#define __launch_bounds__(...)

struct uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

struct Index {
  unsigned x, y, z;
};

// Where the running fiber is.
extern thread_local Index thread_idx, block_idx, block_dim, grid_dim;

// The block's dynamic shared memory.
char *shared_memory();

// Ends the process: the kernel did what no GPU would forgive.
[[noreturn]] void fail(const char *format, ...);

void sync_threads(const char *site);

// Called by all 32 lanes of a warp with the same `apply`: the last one runs it on all their data,
// then all go on.
void warp_collective(const char *site, void *data, void (*apply)(void *const *lanes));

void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void copy_async(void *shared, const void *global, bool valid);
void copy_commit();
void copy_wait(unsigned groups);

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
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

// Fibers are switched at barriers only.
inline unsigned atomicAdd(unsigned *address, unsigned value) {
  unsigned before = *address;
  *address += value;
  return before;
}
