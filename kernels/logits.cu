// out = x · headᵀ in f32
// grid, block, shared: see product.cuh; moves 2 bytes per weight and x, 4 per logit.
#include "product.cuh"

namespace {
struct StoreLogit {
  const LogitsParams &p;
  __device__ void operator()(unsigned row, unsigned output, float sum) const {
    p.out[size_t(row) * p.product.outputs + output] = sum;
  }
};
}  // namespace

// Up to 8, 16, 32 and 64 rows a block, and many.
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    logits_8(const LogitsParams p) { product_few<1>(p.product, StoreLogit{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    logits_16(const LogitsParams p) { product_few<2>(p.product, StoreLogit{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    logits_32(const LogitsParams p) { product_few<4>(p.product, StoreLogit{p}); }
extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    logits_64(const LogitsParams p) { product_few<8>(p.product, StoreLogit{p}); }
extern "C" __global__ void __launch_bounds__(MANY_THREADS, 1)
    logits_many(const LogitsParams p) { product_many(p.product, StoreLogit{p}); }
