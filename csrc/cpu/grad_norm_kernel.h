// The sum of squares over plain arrays, compiled for several instruction sets; one is chosen at run time.
#pragma once

#include <cstdint>

#include "numerics/grad_norm_order.h"

namespace radam_fused {

// The lanes of a partial sum: its finished runs, and the one that is being added, in its own type.
struct GradNormLanes {
  alignas(64) double sum[kLanes];
  alignas(64) unsigned char run[kLanes * sizeof(double)];
};

struct GradNormKernel {
  int run_tiles = 0;
  // Adds the squares of n elements to the run, tile by tile.
  void (*add)(GradNormLanes& lanes, const void* from, int64_t n);
  // Adds the run to the lanes, or puts the first one there, and clears it.
  void (*finish_run)(GradNormLanes& lanes, bool first);
  // The sum of the lanes, by tree_reduce; overwrites them.
  double (*reduce)(GradNormLanes& lanes);
};

GradNormKernel select_grad_norm_kernel(int dtype);

}  // namespace radam_fused
