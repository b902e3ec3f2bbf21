// out = x · weightᵀ + bias, rounded to bf16
// grid, block, shared: see product.cuh; moves 2 bytes per weight, x and output.
#include "product.cuh"

namespace {
struct StoreMatmul {
  const MatmulParams &p;
  __device__ void operator()(unsigned row, unsigned output, float sum) const {
    float bias = p.bias ? p.bias[output] : 0;
    p.out[size_t(row) * p.product.outputs + output] = to_bf16(sum + bias);
  }
};
}  // namespace

// Up to 8, 16, 32 and 64 rows a block, and many.
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_8(const MatmulParams p) { product_few<1>(p.product, StoreMatmul{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_16(const MatmulParams p) { product_few<2>(p.product, StoreMatmul{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_32(const MatmulParams p) { product_few<4>(p.product, StoreMatmul{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_64(const MatmulParams p) { product_few<8>(p.product, StoreMatmul{p}); }
extern "C" __global__ void __launch_bounds__(MANY_THREADS, 1)
    matmul_many(const MatmulParams p) { product_many(p.product, StoreMatmul{p}); }
