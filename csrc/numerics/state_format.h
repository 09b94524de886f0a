// How a bucket's state is stored (radam_fused/numerics/state_format.py).
#pragma once

#include <type_traits>

#include "numerics/dtypes.h"

namespace radam_fused {

// Both moments: float32 (float64 for float64 parameters); bfloat16; float16, encoded as HalfRoot and HalfFirst; or
// 8-bit codes, encoded as RootCode and FirstCode, with a scale per block of kBlockElements (numerics/quantization.h).
enum class MomentFormat : int { kFloat32, kBFloat16, kFloat16, kInt8 };

// The type that stores a first moment: the one list of them. A second moment's has the same size.
template <MomentFormat kMoments>
struct MomentType;
template <>
struct MomentType<MomentFormat::kFloat32> {
  using type = float;
};
template <>
struct MomentType<MomentFormat::kBFloat16> {
  using type = bfloat16;
};
template <>
struct MomentType<MomentFormat::kFloat16> {
  using type = float16;
};
template <>
struct MomentType<MomentFormat::kInt8> {
  using type = int8_t;
};
template <MomentFormat kMoments>
using MomentOf = typename MomentType<kMoments>::type;

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

// The master buffer beside 16-bit parameters: none; float32 master weights; the low 16 bits that make a bfloat16 a
// float32; or Kahan compensations in the parameters' dtype.
enum class MasterFormat : int { kNone, kFloat32, kSplit, kKahan };

constexpr int kBlockElements = 256;  // must match BLOCK in radam_fused/numerics/layout.py

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
    if (moments == MomentFormat::kFloat32) return item_size(moment_dtype(param_dtype));
    return dispatch_moments(moments, [](auto format) { return int64_t(sizeof(MomentOf<format()>)); });
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

}  // namespace radam_fused
