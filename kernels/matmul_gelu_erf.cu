// out = gelu(x · weightᵀ + bias), rounded to bf16; gelu(v) = 0.5 v (1 + erf(v / sqrt(2)))
// grid, block, shared: see product.cuh; moves 2 bytes per weight, x and output.
#include "product.cuh"

namespace {
struct GeluErf {
  __device__ static float of(float v) {
    // 1 + erf(u) = erfc(-u), which has no difference of nearly equal numbers. Spelled out: what the
    // compiler fuses in one kernel it might not fuse in another.
    return __fmul_rn(0.5f * v, erfcf(__fmul_rn(-0.70710678f, v)));
  }
};
using StoreMatmulGeluErf = StoreActivated<GeluErf>;
}  // namespace

// As in matmul.cu.
extern "C" __global__ void __launch_bounds__(FEW_THREADS, few_resident(1))
    matmul_gelu_erf_8(const MatmulParams p) { product_few<1>(p.product, StoreMatmulGeluErf{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS, few_resident(2))
    matmul_gelu_erf_16(const MatmulParams p) { product_few<2>(p.product, StoreMatmulGeluErf{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS, few_resident(4))
    matmul_gelu_erf_32(const MatmulParams p) { product_few<4>(p.product, StoreMatmulGeluErf{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS, few_resident(8))
    matmul_gelu_erf_64(const MatmulParams p) { product_few<8>(p.product, StoreMatmulGeluErf{p}); }
extern "C" __global__ void __launch_bounds__(Small::THREADS, Small::RESIDENT)
    matmul_gelu_erf_small(const MatmulParams p) { product_many<Small>(p.product, StoreMatmulGeluErf{p}); }
extern "C" __global__ void __launch_bounds__(Large::THREADS, Large::RESIDENT)
    matmul_gelu_erf_large(const MatmulParams p) { product_many<Large>(p.product, StoreMatmulGeluErf{p}); }
