// A warp whose lanes work in phases (csrc/cuda/low_precision_tile_loop.h), each with a state in its registers.
#pragma once

#include "cuda/low_precision_tile_loop.h"

namespace radam_fused {

struct Warp {
  Lane lane;

  template <typename Phase>
  RADAM_HD void operator()(const Phase& phase) {
#if defined(__CUDA_ARCH__)
    phase(int(threadIdx.x % kWarp), lane);
#endif
  }

  // Of all lanes' magnitudes.
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

}  // namespace radam_fused
