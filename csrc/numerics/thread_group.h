// Work that threads do together, in parts with a barrier after each. A part gets the number of a thread; a team runs it
// for all of its threads: a block of a GPU at once (csrc/cuda/block.cuh), the host one after the other.
#pragma once

#include "numerics/float_formats.h"

namespace radam_fused {

// A team of one.
struct Solo {
  static constexpr int kThreads = 1;

  template <typename Part>
  void operator()(const Part& part) const {
    part(0);
  }
};

// The sum of n values, a power of two, as a tree in place: the second half is added to the first, until values[0] is
// it.
template <typename Team>
RADAM_HD void halve(double* values, int n, const Team& team) {
  for (int half = n / 2; half > 0; half /= 2) {
    team([&](int thread) {
      for (int i = thread; i < half; i += Team::kThreads) values[i] += values[i + half];
    });
  }
}

}  // namespace radam_fused
