// What a kernel over stored forms is given.
#pragma once

#include "cuda/launch_args.h"
#include "numerics/state_format.h"

namespace radam_fused {

// What a step over stored forms is given besides.
struct alignas(16) LowPrecisionTables : StepTables {
  float* scales;
  float* sq_scales;
  char* master;
  StateFormat format;
  int grad_dtype;
};

}  // namespace radam_fused
