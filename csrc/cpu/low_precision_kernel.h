// The update of low-precision state, compiled for several instruction sets; one is chosen at run time.
#pragma once

#include <cstdint>

#include "numerics/state_format.h"

namespace radam_fused {

// Updates n elements, whose state begins at index `at` of the flat buffers (a multiple of kBlockElements with
// MomentFormat::kInt8), with the random numbers from `rng_offset` on. `param` and `grad` point to the first element,
// `scalars` to kScalarColumns float64 numbers.
using LowPrecisionKernel = void (*)(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                                    const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n,
                                    const double* scalars);

// The kernel of csrc/cpu/avx512/low_precision_kernel.cpp.
void low_precision_avx512(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                          const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n, const double* scalars);

// The fastest that this machine supports.
LowPrecisionKernel select_low_precision_kernel();

}  // namespace radam_fused
