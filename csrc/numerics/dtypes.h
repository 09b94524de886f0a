// The dtypes that the kernels support. Python has the same numbers: NATIVE_DTYPE.
#pragma once

#include <type_traits>

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

// Calls `f` with a value of the type that stores a dtype; returns `unsupported` if there is none.
template <typename Result, typename F>
Result dispatch_dtype(int dtype, Result unsupported, const F& f) {
  switch (dtype) {
    case kFloat32:
      return f(float{});
    case kFloat16:
      return f(float16{});
    case kBFloat16:
      return f(bfloat16{});
    case kFloat64:
      return f(double{});
    default:
      return unsupported;
  }
}

// The same for the dtypes of a parameter and its gradient.
template <typename Result, typename F>
Result dispatch_dtypes(int param_dtype, int grad_dtype, Result unsupported, const F& f) {
  return dispatch_dtype(param_dtype, unsupported, [&](auto p) {
    using P = decltype(p);
    return dispatch_dtype(grad_dtype, unsupported, [&](auto g) {
      using G = decltype(g);
      if constexpr (std::is_same_v<P, double> == std::is_same_v<G, double>) {
        return f(P{}, G{});
      } else {
        return unsupported;
      }
    });
  });
}

}  // namespace radam_fused
