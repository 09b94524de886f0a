// The kernel of the grad_norm operator, for every dtype (csrc/cuda/grad_norm.h).
#include "cuda/block.cuh"
#include "cuda/grad_norm.h"
#include "cuda/kernels.h"
#include "cuda/launch_config.cuh"
#include "numerics/dtypes.h"

namespace radam_fused {
namespace {

// With at most 80 registers and 128 bytes in flight per thread, an SM has 96 KB in flight.
constexpr int kGradNormBlocksPerSM = 6;

template <typename G, typename Arguments>
__global__ void __launch_bounds__(kThreads, kGradNormBlocksPerSM)
    grad_norm_kernel(const __grid_constant__ Arguments arguments) {
  __shared__ double lanes[kLanes];
  sum_grad_norm<G>(arguments, blockIdx.x, gridDim.x, lanes, Block<kThreads>{});
}

template <typename G, typename Arguments>
cudaError_t launch(const LargeGradNorm& arguments, int device, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t status = blocks_for<grad_norm_kernel<G, Arguments>>(device, kPartialSums, blocks);
  return status != cudaSuccess ? status : start<grad_norm_kernel<G, Arguments>>(arguments, blocks, kThreads, stream);
}

template <typename G>
cudaError_t launch(bool large, const LargeGradNorm& arguments, int device, cudaStream_t stream) {
#if CUDART_VERSION >= 12010
  if (large) return launch<G, LargeGradNorm>(arguments, device, stream);
#endif
  return large ? cudaErrorInvalidDeviceFunction : launch<G, SmallGradNorm>(arguments, device, stream);
}

}  // namespace

cudaError_t launch_grad_norm(int dtype, const LargeGradNorm& arguments, size_t by_value, int device,
                             cudaStream_t stream) {
  const bool large = by_value > SmallGradNorm::kCapacity;
  return dispatch_dtype(dtype, cudaErrorInvalidDeviceFunction,
                        [&](auto g) { return launch<decltype(g)>(large, arguments, device, stream); });
}

}  // namespace radam_fused
