// Hopper's asynchronous instructions, one per function, each with a portable body: barriers that count, copies of boxes
// by the copy engine (TMA), and products of a warpgroup (wgmma). Nothing here does anything before sm_90.
//
// Shared memory that the copy engine writes and wgmma reads needs no fence: both use the asynchronous proxy, and a
// barrier's phase orders them.
#pragma once

#include "common.cuh"

#if !defined(TRIMTAB_EMULATOR) && __CUDA_ARCH__ >= 900
#define TRIMTAB_HOPPER 1
#endif

// ---- barriers in shared memory, which count arrivals and bytes ----

using Barrier = unsigned long long;

#ifdef TRIMTAB_EMULATOR
using emulator::shared_address;
#else
__device__ inline unsigned shared_address(const void *shared) {
  return unsigned(__cvta_generic_to_shared(shared));
}
#endif

// A phase is complete after `arrivals` arrivals, and once all bytes that these expect have come.
__device__ inline void barrier_init(Barrier *barrier, unsigned arrivals) {
#ifdef TRIMTAB_EMULATOR
  emulator::barrier_init(barrier, arrivals);
#elif TRIMTAB_HOPPER
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
#endif
}

// Makes barriers that this thread has initialised known to the copy engine.
__device__ inline void barriers_ready() {
#if TRIMTAB_HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void barrier_arrive(Barrier *barrier) {
#ifdef TRIMTAB_EMULATOR
  emulator::barrier_arrive(barrier);
#elif TRIMTAB_HOPPER
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Arrives, and expects this many bytes more.
__device__ inline void barrier_expect(Barrier *barrier, unsigned bytes) {
#ifdef TRIMTAB_EMULATOR
  emulator::barrier_expect(barrier, bytes);
#elif TRIMTAB_HOPPER
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

// Waits until the phase of this parity is complete; the first phase has parity 0.
#ifdef TRIMTAB_EMULATOR
#define barrier_wait(barrier, parity) emulator::barrier_wait(EMULATOR_SITE, barrier, parity)
#else
__device__ inline void barrier_wait(Barrier *barrier, unsigned parity) {
#if TRIMTAB_HOPPER
  asm volatile(
      "{ .reg .pred done; AGAIN%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; "
      "@!done bra AGAIN%=; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}
#endif

// ---- copies of boxes ----

// Starts a copy of the map's box whose first number is in column `column` of row `row`: to rows of 128 bytes, whose
// 16-byte chunks are exchanged (swizzled_rows); zeros outside of the matrix. Its bytes arrive at the barrier.
__device__ inline void load_box(void *shared, const TileMap *map, unsigned column, unsigned row,
                                Barrier *barrier) {
#ifdef TRIMTAB_EMULATOR
  emulator::load_box(shared, map->words, column, row, barrier);
#elif TRIMTAB_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}

// The same of a map of two matrices: 8 rows of each in turn, from row 8 `group` of both on.
__device__ inline void load_turns(void *shared, const TileMap *map, unsigned column, unsigned group,
                                  Barrier *barrier) {
#ifdef TRIMTAB_EMULATOR
  emulator::load_box(shared, map->words, column, 8 * group, barrier);
#elif TRIMTAB_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %3, %4}], [%5];" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(0), "r"(group), "r"(shared_address(barrier))
      : "memory");
#endif
}

__device__ inline void prefetch_map(const TileMap *map) {
#if TRIMTAB_HOPPER
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
  (void)map;
#endif
}

// ---- products of a warpgroup, whose operands are in shared memory ----

// Describes rows of 128 bytes (64 numbers) in groups of 8, 1,024 bytes apart, that begin at a multiple of 1,024:
// chunk c of row r stands in the place of chunk c ^ r % 8. 16 positions on are 2 on in the description.
using Rows = unsigned long long;

__device__ inline Rows swizzled_rows(const void *shared) {
  return Rows(shared_address(shared) >> 4 & 0x3fff) | Rows(1) << 16 | Rows(1024 >> 4) << 32 | Rows(1) << 62;
}

// Comes before the first product, and wherever registers of one were touched.
__device__ inline void wgmma_fence() {
#ifdef TRIMTAB_EMULATOR
  emulator::wgmma_fence();
#elif TRIMTAB_HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Ends a group of products.
__device__ inline void wgmma_commit() {
#ifdef TRIMTAB_EMULATOR
  emulator::wgmma_commit();
#elif TRIMTAB_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most GROUPS groups are still under way.
template <unsigned GROUPS>
__device__ inline void wgmma_wait() {
#ifdef TRIMTAB_EMULATOR
  emulator::wgmma_wait(GROUPS);
#elif TRIMTAB_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
#endif
}

// Keeps the compiler from using sums in front of this place.
template <unsigned COUNT>
__device__ inline void hold(float (&sums)[COUNT]) {
#if TRIMTAB_HOPPER
#pragma unroll
  for (unsigned i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
#else
  (void)sums;
#endif
}

// ---- registers, which one warpgroup of a block gives up for another ----

template <unsigned COUNT>
__device__ inline void take_registers() {
#if TRIMTAB_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

template <unsigned COUNT>
__device__ inline void leave_registers() {
#if TRIMTAB_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

#include "wgmma.cuh"
