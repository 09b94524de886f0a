// The update over plain arrays, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>

#include "numerics/dtypes.h"

namespace radam_fused {

// Updates n elements: param[i] of the kernel's parameter dtype, grad[i] of its gradient dtype, exp_avg[i] and
// exp_avg_sq[i] in float32 (float64 for float64 parameters); `row` points to a Row of that dtype.
using StepKernel = void (*)(void* param, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                            const void* scalars);

// The fastest kernel that this machine runs, or null for a pair of dtypes that no kernel serves.
StepKernel select_step_kernel(int param_dtype, int grad_dtype);

}  // namespace radam_fused
