// Adding squares over plain arrays, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>

namespace radam_fused {

struct SquaresKernel {
  // Adds the squares of n elements to the lanes, tile by tile.
  void (*add)(double* lanes, const void* from, int64_t n);
  // The sum of the lanes, as a tree; they are used up.
  double (*halve)(double* lanes);
};

SquaresKernel select_squares(int dtype);

}  // namespace radam_fused
