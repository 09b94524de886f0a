// A list of gradients whose squares are to be added, read and checked, whatever the device.
#pragma once

#include <memory>
#include <vector>

#include "args/scratch.h"
#include "args/tensor_list.h"

namespace radam_fused {

struct Gradients {
  int dtype = kUnsupported;
  Device device{};
  Scratch<Segment> segments;                  // those with elements; only what concerns a gradient is filled in
  Scratch<std::unique_ptr<Strides>> strides;  // what segments point to; null for most
};

// Raises for the first tensor that does not fit (radam_fused/backends/ops.py, squares).
Gradients read_gradients(const TensorList& grads);

}  // namespace radam_fused
