// residual += x · weightᵀ + bias
// grid, block, shared: see product.cuh; moves 2 bytes per weight and x, 8 per output.
#include "product.cuh"

namespace {
struct AddToResidual {
  const MatmulAddParams &p;
  __device__ void operator()(unsigned row, unsigned output, float sum) const {
    float bias = p.bias ? p.bias[output] : 0;
    p.residual[size_t(row) * p.product.outputs + output] += sum + bias;
  }
};
}  // namespace

// Up to 8, 16, 32 and 64 rows a block, and many.
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_add_8(const MatmulAddParams p) { product_few<1>(p.product, AddToResidual{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_add_16(const MatmulAddParams p) { product_few<2>(p.product, AddToResidual{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_add_32(const MatmulAddParams p) { product_few<4>(p.product, AddToResidual{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    matmul_add_64(const MatmulAddParams p) { product_few<8>(p.product, AddToResidual{p}); }
extern "C" __global__ void __launch_bounds__(MANY_THREADS, 1)
    matmul_add_many(const MatmulAddParams p) { product_many(p.product, AddToResidual{p}); }
