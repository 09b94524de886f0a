// Work of a thread group, in phases with a barrier after each. A phase is called with the rank of a thread; the group
// runs it for all of its threads: at once in a block of a GPU (csrc/cuda/block.cuh), one after the other on the host.
#pragma once

#include "numerics/dtypes.h"

namespace radam_fused {

// A group of one thread.
struct SingleThread {
  static constexpr int kThreads = 1;

  template <typename Phase>
  void operator()(const Phase& phase) const {
    phase(0);
  }
};

// The sum of n values, a power of two, in place: the second half is added to the first, until values[0] is the sum.
template <typename ThreadGroup>
RADAM_HD void tree_reduce(double* values, int n, const ThreadGroup& threads) {
  for (int half = n / 2; half > 0; half /= 2) {
    threads([&](int thread) {
      for (int i = thread; i < half; i += ThreadGroup::kThreads) values[i] += values[i + half];
    });
  }
}

}  // namespace radam_fused
