// The rotation of two channels of a head, for rope and qkv: the same bits in both.
#pragma once

#include "common.cuh"

struct Turned {
  bf16 first, second;
};

// Spelled out: what the compiler fuses in one kernel it might not fuse in another.
__device__ inline Turned turn(bf16 first, bf16 second, float cosine, float sine) {
  float a = to_float(first), b = to_float(second);
  return {to_bf16(fmaf(a, cosine, -__fmul_rn(b, sine))), to_bf16(fmaf(b, cosine, __fmul_rn(a, sine)))};
}
