// A block of threads as a team (csrc/numerics/thread_group.h).
#pragma once

#include "numerics/thread_group.h"

namespace radam_fused {

template <int Threads>
struct Block {
  static constexpr int kThreads = Threads;

  template <typename Part>
  RADAM_HD void operator()(const Part& part) const {
#if defined(__CUDA_ARCH__)
    part(int(threadIdx.x));
    __syncthreads();
#endif
  }
};

}  // namespace radam_fused
