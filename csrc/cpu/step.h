// The step by addresses on the CPU, which needs no dispatcher; on a GPU it is an operator, in another library.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace radam_fused {

// The arguments are those of the operator `step_from_pointers` (radam_fused/backends/ops.py).
void step_from_pointers(const torch::stable::Tensor& pointer_table, int param_dtype,
                        const torch::stable::Tensor& exp_avg, const torch::stable::Tensor& exp_avg_sq,
                        const torch::stable::Tensor& segments, const torch::stable::Tensor& scalar_index,
                        const torch::stable::Tensor& scalars, bool zero_grads,
                        const std::optional<torch::stable::Tensor>& scales,
                        const std::optional<torch::stable::Tensor>& master, bool stochastic,
                        const std::optional<torch::stable::Tensor>& rng_offsets);

}  // namespace radam_fused
