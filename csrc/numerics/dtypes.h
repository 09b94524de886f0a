// The dtypes that the kernels support. Python has the same numbers: NATIVE_DTYPE.
#pragma once

#include "numerics/float_formats.h"

namespace radam_fused {

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kUnsupported = 4 };

RADAM_HD constexpr int64_t item_size(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// float64 parameters need float64 gradients. The other dtypes may be mixed; their arithmetic is in float32.
constexpr bool supported(int param_dtype, int grad_dtype) {
  return param_dtype < kUnsupported && grad_dtype < kUnsupported &&
         (param_dtype == kFloat64) == (grad_dtype == kFloat64);
}

constexpr int moment_dtype(int param_dtype) { return param_dtype == kFloat64 ? kFloat64 : kFloat32; }

}  // namespace radam_fused
