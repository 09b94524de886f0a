// The update over state in its stored forms, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>

#include "numerics/state_format.h"

namespace radam_fused {

// Updates n elements, whose state begins at place `at` of the flat buffers (a multiple of kBlockElements with
// Moments::kInt8), and whose random numbers are those of the places from `origin` on. Parameter and gradient are those
// of the first element; `row` points to kScalarColumns float64 scalars.
using LowPrecisionKernel = void (*)(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                                    const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n,
                                    const double* scalars);

// That of csrc/cpu/avx512/low_precision_kernel.cpp, for machines with AVX-512.
void low_precision_avx512(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                          const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n, const double* scalars);

// The fastest that this machine runs.
LowPrecisionKernel select_low_precision_kernel();

}  // namespace radam_fused
