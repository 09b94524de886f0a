// What a step on the CPU works from: every tensor of its lists read and checked, nothing written yet.
#pragma once

#include <memory>
#include <vector>

#include "tensors.h"

namespace radam_fused {

struct Launch {
  int param_dtype = kUnsupported;
  std::vector<Segment> segments;                  // those with elements
  std::vector<int64_t> ends;                      // running count of elements after each of them, padding left out
  std::vector<std::unique_ptr<Strides>> strides;  // what segments point to; null for most
  char* exp_avg = nullptr;
  char* exp_avg_sq = nullptr;
  const double* rows = nullptr;
};

// Raises for the first argument that does not fit (radam_fused/ops.py says what does).
Launch prepare(const TensorList& params, const TensorList& grads, const torch::stable::Tensor& exp_avg,
               const torch::stable::Tensor& exp_avg_sq, const torch::stable::Tensor& starts,
               const torch::stable::Tensor& row_of, const torch::stable::Tensor& rows);

}  // namespace radam_fused
