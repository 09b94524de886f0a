// Where a block of kBlockElements with low-precision state is stored: its parameters, gradients and state.
#pragma once

#include "cuda/launch_args.h"
#include "cuda/memory_access.h"
#include "numerics/quantization.h"
#include "numerics/state_format.h"

namespace radam_fused {

template <MomentFormat kMoments, typename Arguments>
struct StoredBlock {
  static constexpr bool kCodes = kMoments == MomentFormat::kInt8;
  static constexpr int kMomentItem = sizeof(MomentOf<kMoments>);

  const Arguments& arguments;
  const TileSegment& segment;
  char* grad;
  int64_t offset;  // where the block begins in its segment

  RADAM_HD int param_item() const { return int(item_size(arguments.format.param_dtype)); }
  RADAM_HD int grad_item() const { return int(item_size(arguments.grad_dtype)); }
  RADAM_HD int master_item() const { return int(arguments.format.master_item()); }
  RADAM_HD bool has_master() const { return arguments.format.master != MasterFormat::kNone; }

  RADAM_HD char* param_at(int64_t place) const { return static_cast<char*>(segment.param) + place * param_item(); }
  RADAM_HD char* grad_at(int64_t place) const { return grad + place * grad_item(); }
  RADAM_HD char* state_at(void* state, int64_t element, int item) const {
    return static_cast<char*>(state) + (segment.start + element) * item;
  }
  RADAM_HD char* first_at(int64_t element) const { return state_at(arguments.exp_avg, element, kMomentItem); }
  RADAM_HD char* second_at(int64_t element) const { return state_at(arguments.exp_avg_sq, element, kMomentItem); }
  RADAM_HD char* master_at(int64_t element) const { return state_at(arguments.master, element, master_item()); }
  RADAM_HD int64_t scale_index() const { return int64_t(uint64_t(segment.start + offset) / kBlockElements); }

  RADAM_HD void store_scales(int number, const BlockScale& scale, const BlockScale& sq_scale) const {
    if (number > 0) return;
    store_streaming(arguments.scales + scale_index(), scale.scale);
    store_streaming(arguments.sq_scales + scale_index(), sq_scale.scale);
  }
};

}  // namespace radam_fused
