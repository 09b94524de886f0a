// The update of full-precision state over plain arrays, compiled for several instruction sets; one is chosen at run
// time.
#pragma once

#include <cstdint>

#include "numerics/radam_update.h"

namespace radam_fused {

// Updates n elements: param[i] and grad[i] of the kernel's dtypes, exp_avg[i] and exp_avg_sq[i] in ComputeType;
// `scalars` points to StepScalars of that type.
using StepKernel = void (*)(void* param, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                            const void* scalars);

// The fastest kernel that this machine supports for scalars of these branches, or null for unsupported dtypes.
StepKernel select_step_kernel(int param_dtype, int grad_dtype, const UpdateBranches& branches);

}  // namespace radam_fused
