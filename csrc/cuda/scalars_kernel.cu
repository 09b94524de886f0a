// The kernel of the scalars operator: a single block, so that all threads can synchronise (csrc/numerics/scalars_op.h).
#include "cuda/block.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_config.cuh"
#include "numerics/scalars_op.h"

namespace radam_fused {
namespace {

// The maximum of a block; the 64 registers that it leaves per thread are enough.
constexpr int kScalarsThreads = 1024;

__global__ void __launch_bounds__(kScalarsThreads) scalars_kernel(const __grid_constant__ ScalarsKernelArgs arguments) {
  __shared__ ScalarsShared shared;
  compute_all_scalars(arguments, shared, Block<kScalarsThreads>{});
}

}  // namespace

cudaError_t launch_scalars(const ScalarsKernelArgs& arguments, cudaStream_t stream) {
  return start<scalars_kernel>(arguments, 1, kScalarsThreads, stream);
}

}  // namespace radam_fused
