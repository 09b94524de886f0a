// In which forms a launch finds its state (radam_fused/numerics/state_format.py).
#pragma once

#include "numerics/dtypes.h"

namespace radam_fused {

// How both moments are stored: in float32; in bfloat16; in float16, as HalfRoot and HalfFirst have them; or in 8 bits,
// kBlockElements of them to a scale, as RootCode and FirstCode have them.
enum class MomentFormat : int { kFloat32, kBFloat16, kFloat16, kInt8 };

// What is kept beside a 16-bit parameter: nothing; a copy in float32; the 16 bits that make it one (beside bfloat16);
// or a compensation in the parameter's own dtype.
enum class MasterFormat : int { kNone, kFloat32, kSplit, kKahan };

constexpr int kBlockElements = 256;

struct StateFormat {
  int param_dtype = kUnsupported;
  MomentFormat moments = MomentFormat::kFloat32;
  MasterFormat master = MasterFormat::kNone;
  bool stochastic = false;

  // Whether the kernels for state in the dtype of the arithmetic serve it.
  bool plain() const { return moments == MomentFormat::kFloat32 && master == MasterFormat::kNone && !stochastic; }

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
  float* scales = nullptr;     // of the first moment's blocks, or null
  float* sq_scales = nullptr;  // of the second moment's
  char* master = nullptr;      // or null
};

}  // namespace radam_fused
