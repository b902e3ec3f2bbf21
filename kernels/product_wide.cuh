// x · weightᵀ by wgmma, on Hopper, with the order of sums and the epilogues of product.cuh.
//
// Lines of weights are the rows of a wgmma, the batch's rows its columns. One thread of a warpgroup of its own lets the copy
// engine fill a ring of stages, STEP positions of all lines and rows each; the others multiply what is there:
//
//   copies      |w0 w1 w2|wait|x0 x1 x2|w3 x3 (stage 0 is empty again)|w4 x4 ...
//   products                   |stage 0 |stage 1 |stage 2 |stage 0 ...
//
// The weights of the first stages do not wait for the kernel in front; x does.
//
// grid: rows / ROWS x lines / LINES, so that blocks of the same lines run at about the same time and find one another's
// weights in the L2; block: THREADS; shared: the stages, two barriers each,
// two more, what an epilogue wants, and 1,024 bytes to begin at a multiple of as many.
//
// A stage's barrier `full` counts the bytes that have come, `empty` the warps that are done with it.
#pragma once

#include "hopper.cuh"
#include "product.cuh"

template <unsigned LINES_, unsigned ROWS_>
struct Wide {
  static constexpr unsigned LINES = LINES_, ROWS = ROWS_;
  static constexpr unsigned LINE_BYTES = LINES * STEP * 2, STAGE_BYTES = LINE_BYTES + ROWS * STEP * 2;
  // What fits beside as many other blocks as RESIDENT says, in 227 KiB.
  static constexpr unsigned STAGES =
      LINES == 64 ? (ROWS == 16 ? 10 : ROWS == 32 ? 8 : 6) : ROWS <= 64 ? 8 : ROWS == 128 ? 6 : 5;
  // Threads that multiply, and all.
  static constexpr unsigned WORKERS = LINES * 2, THREADS = WORKERS + 128;
  // Blocks that a processor should hold at a time.
  static constexpr unsigned RESIDENT = LINES == 64 ? 2 : 1;
  // Sums of a thread.
  static constexpr unsigned SUMS = ROWS / 2;

  // Where a thread's sum k of 8 rows lies.
  __device__ static unsigned line(unsigned k) {
    return blockIdx.y * LINES + threadIdx.x / 32 * 16 + k / 2 * 8 + threadIdx.x % 32 / 4;
  }
  __device__ static unsigned row(unsigned j, unsigned k) {
    return blockIdx.x * ROWS + j * 8 + threadIdx.x % 4 * 2 + k % 2;
  }
};

// The stages and their barriers.
template <class T>
struct Ring {
  char *stages;
  // `done` is for epilogues: of all warps that multiply.
  Barrier *full, *empty, *done;
  // Room for an epilogue's own.
  float *beyond;

  __device__ explicit Ring(char *shared) {
    // swizzled_rows wants it; the host asks for 1,024 bytes more.
    stages = shared + (1024 - shared_address(shared) % 1024) % 1024;
    full = reinterpret_cast<Barrier *>(stages + T::STAGES * T::STAGE_BYTES);
    empty = full + T::STAGES;
    done = empty + T::STAGES;
    beyond = reinterpret_cast<float *>(done + 2);
  }
  __device__ char *lines(unsigned stage) const { return stages + stage * T::STAGE_BYTES; }
  __device__ char *rows(unsigned stage) const { return lines(stage) + T::LINE_BYTES; }
};

// The one thread that copies.
template <class T, class Weights>
__device__ __forceinline__ void fill_stages(const ProductParams &p, const Ring<T> &ring, unsigned steps) {
  unsigned first_line = blockIdx.y * T::LINES, first_row = blockIdx.x * T::ROWS;
  auto load_lines = [&](unsigned step, unsigned stage) {
    barrier_expect(ring.full + stage, T::STAGE_BYTES);
    if constexpr (Weights::PAIR) {
      load_turns(ring.lines(stage), p.weight_map, step * STEP, first_line / 16, ring.full + stage);
    } else {
      load_box(ring.lines(stage), p.weight_map, step * STEP, first_line, ring.full + stage);
    }
  };
  auto load_rows = [&](unsigned step, unsigned stage) {
    load_box(ring.rows(stage), p.x_map, step * STEP, first_row, ring.full + stage);
  };
  unsigned begun = min(steps, T::STAGES);
  for (unsigned step = 0; step < begun; step++) load_lines(step, step);
  wait_for_previous();
  start_next();
  for (unsigned step = 0; step < begun; step++) load_rows(step, step);
  unsigned stage = 0, parity = 0;
  for (unsigned step = begun; step < steps; step++) {
    barrier_wait(ring.empty + stage, parity);
    load_lines(step, stage);
    load_rows(step, stage);
    if (++stage == T::STAGES) stage = 0, parity ^= 1;
  }
}

// In the threads that have sums, calls finish.early() before the wait for the kernel in front, finish.late() behind it, and
// finish(sums, ring) in the end.
template <class T, class Weights, class Finish>
__device__ __forceinline__ void multiply_wide(const ProductParams &p, Finish finish) {
  SHARED(char, shared);
  Ring<T> ring(shared);
  unsigned steps = div_up(p.inputs, STEP), warp = threadIdx.x / 32;
  if (threadIdx.x == T::WORKERS) {
    prefetch_map(p.weight_map);
    prefetch_map(p.x_map);
    for (unsigned i = 0; i < T::STAGES; i++) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, T::WORKERS / 32);
    }
    barrier_init(ring.done, T::WORKERS / 32);
    barriers_ready();
  }
  __syncthreads();
  // Each role is one branch: else the compiler does not heed how many registers it takes.
  if (warp >= T::WORKERS / 32) {
    if (T::LINES == 128) leave_registers<40>();
    if (threadIdx.x == T::WORKERS) {
      fill_stages<T, Weights>(p, ring, steps);
    } else {
      wait_for_previous();
    }
  } else {
    if (T::LINES == 128) take_registers<232>();
    finish.early();
    wait_for_previous();
    start_next();
    finish.late();
    float total[T::SUMS], slice[T::SUMS];
#pragma unroll
    for (unsigned i = 0; i < T::SUMS; i++) total[i] = 0;
    unsigned stage = 0, parity = 0, per_slice = div_up(steps, SLICES);
    auto release = [&](unsigned which) {
      if (threadIdx.x % 32 == 0) barrier_arrive(ring.empty + which);
    };
    for (unsigned first = 0; first < steps; first += per_slice) {
      unsigned end = min(first + per_slice, steps), before = 0;
      // One loop with one way through it: where ways join, the compiler waits for all products (ptxas C7517).
      for (unsigned step = first; step < end; step++) {
        barrier_wait(ring.full + stage, parity);
        Rows lines = swizzled_rows(ring.lines(stage) + warp / 4 * 64 * STEP * 2);
        Rows rows = swizzled_rows(ring.rows(stage));
        wgmma_fence();
#pragma unroll
        for (unsigned k = 0; k < STEP / 16; k++) {
          wgmma(slice, lines + 2 * k, rows + 2 * k, step > first || k > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (step > first) release(before);
        before = stage;
        if (++stage == T::STAGES) stage = 0, parity ^= 1;
      }
      wgmma_wait<0>();
      hold(slice);
      release(before);
#pragma unroll
      for (unsigned i = 0; i < T::SUMS; i++) total[i] += slice[i];
    }
    finish(total, ring);
  }
}

// Gives an epilogue all sums of the block: what it wants of memory that no kernel in flight writes once for each of a
// thread's outputs, and the rest for some rows at a time, so that one waits for the memory once for all of them; where
// there are few, before the product.
template <class T, class Weights, class Epilogue>
struct Finish {
  // A thread's outputs, rows of each, and how many of these are stored together.
  static constexpr unsigned OUTPUTS = Weights::PAIR ? 2 : 4, ROWS = T::ROWS / 8;
  static constexpr unsigned TOGETHER = ROWS <= 8 ? ROWS : ROWS % 8 == 0 ? 8 : 5;
  static constexpr bool AHEAD = ROWS <= 4;
  static_assert(ROWS % TOGETHER == 0, "whole batches");

  const ProductParams &p;
  Weights weights;
  Epilogue epilogue;
  typename Epilogue::Early early_of[OUTPUTS];
  typename Epilogue::Late late_of[AHEAD ? OUTPUTS : 1][TOGETHER];

  // Sum k of the j-th 8 rows.
  __device__ unsigned output(unsigned k) const { return weights.output(T::line(k)); }
  __device__ bool stores(unsigned j, unsigned k) const {
    return T::row(j, k) < p.rows && output(k) < p.outputs;
  }

  __device__ void ask(unsigned first, unsigned k, typename Epilogue::Late (&late)[TOGETHER]) const {
#pragma unroll
    for (unsigned i = 0; i < TOGETHER; i++) {
      unsigned j = first + i;
      if (stores(j, k)) late[i] = epilogue.late(T::row(j, k), output(k));
    }
  }
  __device__ void early() {
#pragma unroll
    for (unsigned k = 0; k < OUTPUTS; k++) {
      if (output(k) < p.outputs) early_of[k] = epilogue.early(output(k));
    }
  }
  __device__ void late() {
    if constexpr (AHEAD) {
#pragma unroll
      for (unsigned k = 0; k < OUTPUTS; k++) ask(0, k, late_of[k]);
    }
  }

  __device__ void operator()(const float (&sums)[T::SUMS], const Ring<T> &) {
    if constexpr (Epilogue::GROUPS) {
#pragma unroll
      for (unsigned j = 0; j < ROWS; j++)
#pragma unroll
        for (unsigned k = 0; k < 2; k++) {
          give_group(epilogue, p, T::row(j, k), T::line(k), sums[4 * j + k], sums[4 * j + k + 2]);
        }
    }
#pragma unroll
    for (unsigned k = 0; k < OUTPUTS; k++)
#pragma unroll
      for (unsigned first = 0; first < ROWS; first += TOGETHER) {
        auto &late = late_of[AHEAD ? k : 0];
        if constexpr (!AHEAD) ask(first, k, late);
#pragma unroll
        for (unsigned i = 0; i < TOGETHER; i++) {
          unsigned j = first + i;
          if (!stores(j, k)) continue;
          if constexpr (Weights::PAIR) {
            float second = sums[4 * j + k + 2];
            epilogue.store(T::row(j, k), output(k), early_of[k], late[i], sums[4 * j + k], second);
          } else {
            epilogue.store(T::row(j, k), output(k), early_of[k], late[i], sums[4 * j + k]);
          }
        }
      }
  }
};

template <class T, class Weights, class Epilogue>
__device__ __forceinline__ void product_wide(const ProductParams &p, Weights weights, Epilogue epilogue) {
  multiply_wide<T, Weights>(p, Finish<T, Weights, Epilogue>{p, weights, epilogue, {}, {}});
}

template <class T, class Epilogue>
__device__ __forceinline__ void product_wide(const ProductParams &p, Epilogue epilogue) {
  product_wide<T>(p, One{p.weight}, epilogue);
}
