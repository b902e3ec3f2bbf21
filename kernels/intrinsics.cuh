// Every line of inline PTX, one instruction per function, each with a portable body that the
// emulator compiles instead.
#pragma once

// Marks a kernel that may start before the one in front of it is done: `extern "C" EARLY __global__
// void name(const Params p)`. What such a kernel owes is in README.md.
#define EARLY

// Waits until the kernel in front is done and what it wrote can be read; at once if there is none to
// wait for. Without it before sm_90, where no kernel starts early.
__device__ inline void wait_for_previous() {
#ifdef TRIMTAB_EMULATOR
  emulator::wait_for_previous();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel behind this one start, once all blocks have called it or are done.
__device__ inline void start_next() {
#ifdef TRIMTAB_EMULATOR
  emulator::start_next();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// bf16 is the upper half of an f32; rounding is to the nearest, ties to even.

__device__ inline float to_float(bf16 value) {
  return __uint_as_float(unsigned(value.bits) << 16);
}

// The lower and the upper of two numbers that lie in one register.
__device__ inline float low_float(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_float(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ inline bf16 to_bf16(float value) {
#ifdef TRIMTAB_EMULATOR
  unsigned bits = __float_as_uint(value);
  if (value != value) return bf16{(unsigned short)(bits >> 16 | 0x40)};
  return bf16{(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#else
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}

// Both numbers as bf16 in one register, `low` in the lower half.
__device__ inline unsigned pack(float low, float high) {
#ifdef TRIMTAB_EMULATOR
  return to_bf16(low).bits | unsigned(to_bf16(high).bits) << 16;
#else
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// Neither load is `.nc`: that promises that no kernel writes there while this one runs, so that a compiler may
// move the load in front of wait_for_previous.

// A 16-byte load of what is read once: it leaves the L1 to others.
__device__ inline uint4 load_once(const void *address) {
#ifdef TRIMTAB_EMULATOR
  return *static_cast<const uint4 *>(address);
#else
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
#endif
}

// A 16-byte load of what others of the processor read again.
__device__ inline uint4 load_again(const void *address) {
#ifdef TRIMTAB_EMULATOR
  return *static_cast<const uint4 *>(address);
#else
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
#endif
}

// Asks for the 128 bytes around an address to be brought to the L2.
__device__ inline void prefetch(const void *address) {
#ifndef TRIMTAB_EMULATOR
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

// sums += a · b for a 16 x 16 times 16 x 8 tile of bf16 (mma.sync m16n8k16). With g = lane / 4 and
// t = lane % 4: a[0], a[2] hold row g, a[1], a[3] row g + 8; b holds column g; sums[0], sums[1] are
// (g, 2t), (g, 2t + 1), sums[2], sums[3] the same of row g + 8. Registers 0, 1 of a and 0 of b hold
// positions 2t, 2t + 1 of the inner dimension, the others 2t + 8, 2t + 9.
__device__ inline void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef TRIMTAB_EMULATOR
  emulator::mma(sums, a, b);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Transposes an 8 x 8 matrix of 16-bit numbers: with g = lane / 4 and t = lane % 4, a lane gives
// (g, 2t), (g, 2t + 1) and gets (2t, g), (2t + 1, g).
__device__ inline unsigned transpose(unsigned pair) {
#ifdef TRIMTAB_EMULATOR
  return emulator::transpose(pair);
#else
  unsigned result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
#endif
}

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory, transposed: lane l names row
// l % 8 of matrix l / 8, 16 bytes; of each matrix it gets (2t, g), (2t + 1, g).
__device__ inline void load_transposed(unsigned (&pairs)[4], const void *row) {
#ifdef TRIMTAB_EMULATOR
  emulator::load_transposed(pairs, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(unsigned(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// Starts a copy of 16 bytes to shared memory, or of 16 zero bytes if not `valid`. It has happened
// for this thread after copy_wait, for the others after a barrier that follows it.
__device__ inline void copy_async(void *shared, const void *global, bool valid) {
#ifdef TRIMTAB_EMULATOR
  emulator::copy_async(shared, global, valid);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(unsigned(__cvta_generic_to_shared(shared))), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#endif
}

// Ends a group of copies.
__device__ inline void copy_commit() {
#ifdef TRIMTAB_EMULATOR
  emulator::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most GROUPS of this thread's groups are still under way.
template <unsigned GROUPS>
__device__ inline void copy_wait() {
#ifdef TRIMTAB_EMULATOR
  emulator::copy_wait(GROUPS);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}
