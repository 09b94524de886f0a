// The arguments of radam_fused::rows_native, checked, and memory for what it returns, whatever the device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "args/tensor_list.h"
#include "numerics/scalars_op.h"

namespace radam_fused {

struct ScalarsCall {
  ScalarsArguments arguments;
  Device device;
  torch::stable::Tensor scalars;
  torch::stable::Tensor norm;
};

// Raises for the first argument that does not fit (radam_fused/backends/ops.py, rows). The values of `pairs` are looked
// at where they are on the CPU; on a GPU nobody can without waiting for it.
ScalarsCall check_scalars_args(const torch::stable::Tensor& group_scalars, const torch::stable::Tensor& pairs,
                               const torch::stable::Tensor& counted, const torch::stable::Tensor& steps,
                               const torch::stable::Tensor& taken, const std::optional<torch::stable::Tensor>& lr,
                               const std::optional<torch::stable::Tensor>& partial_sums, double max_grad_norm,
                               const std::optional<torch::stable::Tensor>& grad_scale,
                               const std::optional<torch::stable::Tensor>& found_inf);

}  // namespace radam_fused
