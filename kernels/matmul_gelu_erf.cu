// out = gelu(x · weightᵀ + bias), rounded to bf16; gelu(v) = 0.5 v (1 + erf(v / sqrt(2)))
// grid, block, shared: see product.cuh; moves 2 bytes per weight, x and output.
#include "product_wide.cuh"

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

// Up to 8, 16, 32 and 64 rows a block; rows that are no whole CHUNKs; many rows, for small products and for large ones.
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    matmul_gelu_erf_8(const MatmulParams p) { product_few<1>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    matmul_gelu_erf_16(const MatmulParams p) { product_few<2>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    matmul_gelu_erf_32(const MatmulParams p) { product_few<4>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    matmul_gelu_erf_64(const MatmulParams p) { product_few<8>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(FEW_THREADS, FEW_RESIDENT)
    matmul_gelu_erf_odd(const MatmulParams p) { product_few<2, false>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Small::THREADS, Small::RESIDENT)
    matmul_gelu_erf_small(const MatmulParams p) { product_many<Small>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Large::THREADS, Large::RESIDENT)
    matmul_gelu_erf_large(const MatmulParams p) { product_many<Large>(p.product, One{p.product.weight}, StoreMatmulGeluErf{p}); }
// Hopper's, by lines and rows of a block.
extern "C" EARLY __global__ void __launch_bounds__(Wide<64, 16>::THREADS, Wide<64, 16>::RESIDENT)
    matmul_gelu_erf_64x16(const MatmulParams p) { product_wide<Wide<64, 16>>(p.product, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Wide<64, 32>::THREADS, Wide<64, 32>::RESIDENT)
    matmul_gelu_erf_64x32(const MatmulParams p) { product_wide<Wide<64, 32>>(p.product, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Wide<64, 64>::THREADS, Wide<64, 64>::RESIDENT)
    matmul_gelu_erf_64x64(const MatmulParams p) { product_wide<Wide<64, 64>>(p.product, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Wide<128, 64>::THREADS, Wide<128, 64>::RESIDENT)
    matmul_gelu_erf_128x64(const MatmulParams p) { product_wide<Wide<128, 64>>(p.product, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Wide<128, 128>::THREADS, Wide<128, 128>::RESIDENT)
    matmul_gelu_erf_128x128(const MatmulParams p) { product_wide<Wide<128, 128>>(p.product, StoreMatmulGeluErf{p}); }
extern "C" EARLY __global__ void __launch_bounds__(Wide<128, 160>::THREADS, Wide<128, 160>::RESIDENT)
    matmul_gelu_erf_128x160(const MatmulParams p) { product_wide<Wide<128, 160>>(p.product, StoreMatmulGeluErf{p}); }
