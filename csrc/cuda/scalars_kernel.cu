// The kernel that makes rows: a single block, which can wait for all of itself (csrc/numerics/scalars_op.h).
#include "cuda/block.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_config.cuh"
#include "numerics/scalars_op.h"

namespace radam_fused {
namespace {

// All that a block can have; the 64 registers that this leaves a thread are enough for a row.
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
