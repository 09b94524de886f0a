// The gradients that a grad_norm operator reads, checked, for all devices.
#pragma once

#include <memory>
#include <vector>

#include "args/scratch.h"
#include "args/tensor_list.h"

namespace radam_fused {

struct GradNormArgs {
  int dtype = kUnsupported;
  Device device{};
  Scratch<Segment> segments;                  // those that have elements; what concerns parameters is left empty
  Scratch<std::unique_ptr<Strides>> strides;  // owns what segments point to; null for most
};

// Raises for the first tensor that does not fit (radam_fused/backends/ops.py, squares).
GradNormArgs read_grad_norm_args(const TensorList& grads);

}  // namespace radam_fused
