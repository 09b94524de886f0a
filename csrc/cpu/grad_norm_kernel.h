// The sum of squares over plain arrays, compiled for several instruction sets; one is chosen at run time.
#pragma once

#include <cstdint>

namespace radam_fused {

struct GradNormKernel {
  // Adds the squares of n elements to kLanes lanes, tile by tile.
  void (*add)(double* lanes, const void* from, int64_t n);
  // The sum of the lanes, by tree_reduce; overwrites them.
  double (*reduce)(double* lanes);
};

GradNormKernel select_grad_norm_kernel(int dtype);

}  // namespace radam_fused
