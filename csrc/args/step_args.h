// The arguments of a step operator: every tensor is read and checked here, for all devices, before anything is written.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "args/scratch.h"
#include "args/tensor_list.h"
#include "numerics/state_format.h"

namespace radam_fused {

// What a step operator takes besides parameters and gradients, in the order of its schema (radam_fused/backends/ops.py,
// which also says what each argument must be).
struct StepArgs {
  torch::stable::Tensor exp_avg;
  torch::stable::Tensor exp_avg_sq;
  torch::stable::Tensor segments;
  torch::stable::Tensor scalar_index;
  torch::stable::Tensor scalars;
  bool zero_grads;
  std::optional<torch::stable::Tensor> scales;
  std::optional<torch::stable::Tensor> master;
  bool stochastic;
  std::optional<torch::stable::Tensor> rng_offsets;
};

// One row in the argument `segments`.
struct SegmentPlace {
  int64_t start;        // of its moments in the flat buffers, in elements
  int64_t layout_hash;  // of the parameter for which the moments were laid out
};

// A checked step, ready to run.
struct Launch {
  StateFormat format;
  StateBuffers state;
  Scratch<Segment> segments;                  // those that have elements
  Scratch<int64_t> ends;                      // number of elements up to the end of each segment, without padding
  Scratch<std::unique_ptr<Strides>> strides;  // owns what segments point to; null for most
  const double* scalars = nullptr;            // scalar_count rows of kScalarColumns
  int64_t scalar_count = 0;
  bool scalars_on_device = false;   // with the moments, where those are not on the CPU
  std::vector<size_t> overlapping;  // indices of the gradients whose elements share memory
};

// Parameters, gradients and moments are on one device, the scalars there or on the CPU, everything else on the CPU.
// Raises for the first argument that does not fit.
Launch read_step_args(const TensorList& params, const TensorList& grads, const StepArgs& args);
// The same for borrowed handles.
Launch read_step_args(const std::vector<AtenTensorHandle>& params, const std::vector<AtenTensorHandle>& grads,
                      const StepArgs& args);

// One row in a pointer table: a parameter and its gradient, both dense arrays in the order of their moments. The table
// is an int64 tensor of shape (n, 5), which radam_fused._C.read_pairs fills in.
struct TensorPair {
  AtenTensorHandle tensor;  // the parameter
  void* param;
  void* grad;
  int64_t numel;
  int64_t grad_dtype;
};
static_assert(sizeof(TensorPair) == 5 * sizeof(int64_t), "one row in a pointer table");

// The same for a pointer table. Dtypes and layouts of the pairs were checked when the table was filled in.
Launch read_step_args(const torch::stable::Tensor& pointer_table, int param_dtype, const StepArgs& args);

// Clears the gradients whose elements share memory, after the kernel: a thread of a kernel would clear elements that
// another thread has yet to read.
void clear_overlapping(const TensorList& grads, const Launch& launch);

// The operator step_native, for a device on which `Run` performs a checked step.
template <void (*Run)(const Launch&, const StepArgs&)>
void step_operator(StableListHandle params, StableListHandle grads, torch::stable::Tensor exp_avg,
                   torch::stable::Tensor exp_avg_sq, torch::stable::Tensor segments, torch::stable::Tensor scalar_index,
                   torch::stable::Tensor scalars, bool zero_grads, std::optional<torch::stable::Tensor> scales,
                   std::optional<torch::stable::Tensor> master, bool stochastic,
                   std::optional<torch::stable::Tensor> rng_offsets) {
  const TensorList param_list(params);
  const TensorList grad_list(grads);
  const StepArgs args{std::move(exp_avg),      std::move(exp_avg_sq), std::move(segments),
                      std::move(scalar_index), std::move(scalars),    zero_grads,
                      std::move(scales),       std::move(master),     stochastic,
                      std::move(rng_offsets)};
  const Launch launch = read_step_args(param_list, grad_list, args);
  Run(launch, args);
  if (zero_grads) clear_overlapping(grad_list, launch);
}

// The operator step_from_pointers, likewise.
template <void (*Run)(const Launch&, const StepArgs&)>
void step_from_pointers_operator(torch::stable::Tensor pointer_table, int64_t param_dtype,
                                 torch::stable::Tensor exp_avg, torch::stable::Tensor exp_avg_sq,
                                 torch::stable::Tensor segments, torch::stable::Tensor scalar_index,
                                 torch::stable::Tensor scalars, bool zero_grads,
                                 std::optional<torch::stable::Tensor> scales,
                                 std::optional<torch::stable::Tensor> master, bool stochastic,
                                 std::optional<torch::stable::Tensor> rng_offsets) {
  const StepArgs args{std::move(exp_avg),      std::move(exp_avg_sq), std::move(segments),
                      std::move(scalar_index), std::move(scalars),    zero_grads,
                      std::move(scales),       std::move(master),     stochastic,
                      std::move(rng_offsets)};
  Run(read_step_args(pointer_table, int(param_dtype), args), args);
}

}  // namespace radam_fused
