// What a step in C++ works from, whatever the device: every tensor of its lists read and checked, nothing written yet.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "args/scratch.h"
#include "args/tensor_list.h"
#include "numerics/state_format.h"

namespace radam_fused {

// The state of a bucket as an operator is given it.
struct StateTensors {
  const torch::stable::Tensor& exp_avg;
  const torch::stable::Tensor& exp_avg_sq;
  const std::optional<torch::stable::Tensor>& scales;
  const std::optional<torch::stable::Tensor>& master;
  bool stochastic;
  const std::optional<torch::stable::Tensor>& rng_offsets;  // on the CPU, one a segment
};

// Which segments are stepped, and by what: on the CPU all but the rows.
struct TableTensors {
  const torch::stable::Tensor& segments;
  const torch::stable::Tensor& scalar_index;
  const torch::stable::Tensor& scalars;
};

struct Launch {
  StateFormat format;
  StateBuffers state;
  Scratch<Segment> segments;                  // those with elements
  Scratch<int64_t> ends;                      // running count of elements after each of them, padding left out
  Scratch<std::unique_ptr<Strides>> strides;  // what segments point to; null for most
  const double* scalars = nullptr;            // scalar_count of them, kScalarColumns each
  int64_t scalar_count = 0;
  bool scalars_on_device = false;   // with the moments, when those are not on the CPU
  std::vector<size_t> overlapping;  // which gradients' elements share memory, by their place in the list
};

// Raises for the first argument that does not fit (radam_fused/backends/ops.py says what does). Parameters, gradients
// and moments lie on one device, the rows there or on the CPU, the rest on the CPU.
Launch prepare(const TensorList& params, const TensorList& grads, const StateTensors& state,
               const TableTensors& tables);

// A pair of arrays in the order of their moments, as radam_fused._C.read_pairs fills it in and `described` of the
// operator step_from_pointers holds it: an int64 (n, 5) tensor.
struct TensorPair {
  AtenTensorHandle tensor;  // the parameter
  void* param;
  void* grad;
  int64_t numel;
  int64_t grad_dtype;
};
static_assert(sizeof(TensorPair) == 5 * sizeof(int64_t), "a line of `described`");

// The lines of such a tensor; raises where it is another.
struct PointerTable {
  const TensorPair* data;
  size_t size;
  const TensorPair& operator[](size_t index) const { return data[index]; }
};
PointerTable read_pointer_table(const torch::stable::Tensor& pointer_table);

// The same as `prepare` from what was read already. The pairs' dtypes and layouts are not looked at again.
Launch prepare_described(const torch::stable::Tensor& pointer_table, int param_dtype, const StateTensors& state,
                         const TableTensors& tables);

// Clears the gradients whose elements share memory, which no kernel can do while others still read them.
void clear_overlapping(const TensorList& grads, const Launch& launch);

}  // namespace radam_fused
