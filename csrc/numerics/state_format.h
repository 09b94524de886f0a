// How a bucket's state is stored (radam_fused/numerics/state_format.py).
#pragma once

#include <type_traits>

#include "numerics/dtypes.h"

namespace radam_fused {

// Both moments: float32 (float64 for float64 parameters); bfloat16; float16, encoded as HalfRoot and HalfFirst; or
// 8-bit codes, encoded as RootCode and FirstCode, with a scale per block of kBlockElements (numerics/quantization.h).
enum class MomentFormat : int { kFloat32, kBFloat16, kFloat16, kInt8 };

// The master buffer beside 16-bit parameters: none; float32 master weights; the low 16 bits that make a bfloat16 a
// float32; or Kahan compensations in the parameters' dtype.
enum class MasterFormat : int { kNone, kFloat32, kSplit, kKahan };

constexpr int kBlockElements = 256;

struct StateFormat {
  int param_dtype = kUnsupported;
  MomentFormat moments = MomentFormat::kFloat32;
  MasterFormat master = MasterFormat::kNone;
  bool stochastic = false;

  // Whether all state has the dtype of the arithmetic: step_kernel, not low_precision_kernel.
  bool is_full_precision() const {
    return moments == MomentFormat::kFloat32 && master == MasterFormat::kNone && !stochastic;
  }

  int64_t moment_item() const {
    return moments == MomentFormat::kInt8      ? 1
           : moments != MomentFormat::kFloat32 ? 2
                                               : item_size(moment_dtype(param_dtype));
  }
  RADAM_HD int64_t master_item() const {
    return master == MasterFormat::kNone ? 0 : master == MasterFormat::kFloat32 ? 4 : 2;
  }
};

// The flat buffers of a bucket's state.
struct StateBuffers {
  char* exp_avg = nullptr;
  char* exp_avg_sq = nullptr;
  float* scales = nullptr;     // of the first moment's blocks; null unless kInt8
  float* sq_scales = nullptr;  // of the second moment's
  char* master = nullptr;      // null for kNone
};

// Calls `f` with a MomentFormat as a compile-time constant.
template <typename F>
auto dispatch_moments(MomentFormat moments, const F& f) {
  switch (moments) {
    case MomentFormat::kFloat32:
      return f(std::integral_constant<MomentFormat, MomentFormat::kFloat32>{});
    case MomentFormat::kBFloat16:
      return f(std::integral_constant<MomentFormat, MomentFormat::kBFloat16>{});
    case MomentFormat::kFloat16:
      return f(std::integral_constant<MomentFormat, MomentFormat::kFloat16>{});
    default:
      return f(std::integral_constant<MomentFormat, MomentFormat::kInt8>{});
  }
}

}  // namespace radam_fused
