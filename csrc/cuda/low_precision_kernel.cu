// The kernels of a step with low-precision state (csrc/cuda/low_precision_tile_loop.h), one per MomentFormat. Their
// arguments are 4 KB; scalars and gradient addresses that do not fit are passed in tables.
#include "cuda/kernels.h"
#include "cuda/launch_config.cuh"
#include "cuda/low_precision_tile_loop.h"

namespace radam_fused {
namespace {

// A warp as a thread group: its lanes work in phases, each with a state in its registers.
struct Warp {
  Lane lane;

  // The state of the lanes belongs to one block of elements.
  RADAM_HD Warp for_block() const { return Warp(); }

  template <typename Phase>
  RADAM_HD void operator()(const Phase& phase) {
#if defined(__CUDA_ARCH__)
    phase(int(threadIdx.x % kWarp), lane);
#endif
  }

  // The largest magnitude of all lanes.
  RADAM_HD uint32_t largest() const {
    uint32_t largest = lane.values.largest;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    largest = __reduce_max_sync(~0u, largest);
#elif defined(__CUDA_ARCH__)
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      largest = max(largest, __shfl_xor_sync(~0u, largest, distance));
    }
#endif
    return largest;
  }
};

// The blocks that fit on an SM: 512 threads of at most 128 registers.
constexpr int kLowPrecisionBlocksPerSM = 4;

template <MomentFormat kMoments>
__global__ void __launch_bounds__(kThreads, kLowPrecisionBlocksPerSM)
    low_precision_kernel(const __grid_constant__ LowPrecisionStep arguments) {
  Warp warp;
  step_low_precision_tiles<kMoments, kThreads / kWarp>(arguments,
                                                       ThreadIndex{blockIdx.x, gridDim.x, threadIdx.x / kWarp}, warp);
}

template <MomentFormat kMoments>
cudaError_t launch(const LowPrecisionStep& arguments, int device, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t status = blocks_for<low_precision_kernel<kMoments>>(device, arguments.tiles, blocks);
  return status != cudaSuccess ? status : start<low_precision_kernel<kMoments>>(arguments, blocks, kThreads, stream);
}

}  // namespace

cudaError_t launch_low_precision(const LowPrecisionStep& arguments, int device, cudaStream_t stream) {
  return dispatch_moments(arguments.format.moments,
                          [&](auto moments) { return launch<moments()>(arguments, device, stream); });
}

}  // namespace radam_fused
