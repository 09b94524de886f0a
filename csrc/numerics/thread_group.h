// Work that threads do together, in parts with a barrier after each. A part gets the number of a thread; a team runs it
// for all of its threads: a block of a GPU at once (csrc/cuda/block.cuh), the host one after the other.
#pragma once

#include "numerics/float_formats.h"

namespace radam_fused {

// A team of one.
struct SingleThread {
  static constexpr int kThreads = 1;

  template <typename Phase>
  void operator()(const Phase& phase) const {
    phase(0);
  }
};

// The sum of n values, a power of two, as a tree in place: the second half is added to the first, until values[0] is
// it.
template <typename ThreadGroup>
RADAM_HD void tree_reduce(double* values, int n, const ThreadGroup& threads) {
  for (int half = n / 2; half > 0; half /= 2) {
    threads([&](int thread) {
      for (int i = thread; i < half; i += ThreadGroup::kThreads) values[i] += values[i + half];
    });
  }
}

}  // namespace radam_fused
