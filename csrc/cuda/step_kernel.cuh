// The kernel of a step with full-precision state: one launch updates all segments of a bucket
// (csrc/cuda/full_precision_tile_loop.h).
#pragma once

#include "cuda/full_precision_tile_loop.h"

namespace radam_fused {

// The blocks that fit on an SM: 768 threads of at most 80 registers, or 512 of at most 128 for float64. With eight
// elements per thread 96 KB are in flight, several times what hides the latency of memory.
template <typename P>
constexpr int kBlocksPerSM = std::is_same_v<P, double> ? 4 : 6;

template <typename P, typename G, typename Arguments>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM<P>) step_kernel(const __grid_constant__ Arguments arguments) {
  step_tiles<kThreads, P, G>(arguments, ThreadIndex{blockIdx.x, gridDim.x, threadIdx.x});
}

}  // namespace radam_fused
