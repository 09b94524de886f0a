// The arguments of a step with low-precision state.
#pragma once

#include "cuda/launch_args.h"
#include "numerics/state_format.h"

namespace radam_fused {

// The elements of a tile: several blocks for each warp, which share what is looked up of the tile.
constexpr int kLowPrecisionTile = 4096;

// What it needs besides.
struct alignas(16) LowPrecisionTables : StepTables {
  float* scales;
  float* sq_scales;
  char* master;
  StateFormat format;
  int grad_dtype;
};

}  // namespace radam_fused
