// A block of threads as a thread group (csrc/numerics/thread_group.h).
#pragma once

#include "numerics/thread_group.h"

namespace radam_fused {

template <int Threads>
struct Block {
  static constexpr int kThreads = Threads;

  template <typename Phase>
  RADAM_HD void operator()(const Phase& phase) const {
#if defined(__CUDA_ARCH__)
    phase(int(threadIdx.x));
    __syncthreads();
#endif
  }
};

}  // namespace radam_fused
