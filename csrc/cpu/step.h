// The step by addresses on the CPU, which needs no dispatcher; on a GPU it is an operator, in another library.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace radam_fused {

// The arguments are those of the operator `step_described` (radam_fused/backends/ops.py).
void step_described(const torch::stable::Tensor& described, int param_dtype, const torch::stable::Tensor& exp_avg,
                    const torch::stable::Tensor& exp_avg_sq, const torch::stable::Tensor& segments,
                    const torch::stable::Tensor& row_of, const torch::stable::Tensor& rows, bool zero_grads,
                    const std::optional<torch::stable::Tensor>& scales,
                    const std::optional<torch::stable::Tensor>& residue, bool stochastic,
                    const std::optional<torch::stable::Tensor>& origins);

}  // namespace radam_fused
