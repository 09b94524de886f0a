// The arguments of a scalars operator, checked, and memory for what it returns, for all devices.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "args/tensor_list.h"
#include "numerics/scalars_op.h"

namespace radam_fused {

// What a scalars operator takes, in the order of its schema (radam_fused/backends/ops.py, which also says what each
// argument must be).
struct ScalarsArgs {
  torch::stable::Tensor group_scalars;
  torch::stable::Tensor sources;
  torch::stable::Tensor counted;
  torch::stable::Tensor steps;
  torch::stable::Tensor taken;
  std::optional<torch::stable::Tensor> lr;
  std::optional<torch::stable::Tensor> partial_sums;
  double max_grad_norm;
  std::optional<torch::stable::Tensor> grad_scale;
  std::optional<torch::stable::Tensor> found_inf;
};

struct ScalarsCall {
  ScalarsKernelArgs arguments;
  Device device;
  torch::stable::Tensor scalars;
  torch::stable::Tensor norm;
};

// Raises for the first argument that does not fit. The values of `sources` are checked on the CPU alone: reading them
// from a GPU would wait for it.
ScalarsCall read_scalars_args(const ScalarsArgs& args);

// The operator scalars_native, for a device on which `Run` computes them.
template <void (*Run)(const ScalarsCall&)>
std::tuple<torch::stable::Tensor, torch::stable::Tensor> scalars_operator(
    torch::stable::Tensor group_scalars, torch::stable::Tensor sources, torch::stable::Tensor counted,
    torch::stable::Tensor steps, torch::stable::Tensor taken, std::optional<torch::stable::Tensor> lr,
    std::optional<torch::stable::Tensor> partial_sums, double max_grad_norm,
    std::optional<torch::stable::Tensor> grad_scale, std::optional<torch::stable::Tensor> found_inf) {
  const ScalarsCall call = read_scalars_args(
      {group_scalars, sources, counted, steps, taken, lr, partial_sums, max_grad_norm, grad_scale, found_inf});
  Run(call);
  return {call.scalars, call.norm};
}

}  // namespace radam_fused
