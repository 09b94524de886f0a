// What the steps of a plan have in common, parsed once (`prepare_step` in pointer_table.cpp).
#pragma once

#include <Python.h>

#include <optional>

#include "args/step_args.h"
#include "python/held_gradients.h"
#include "python/tensor_objects.h"
#include "python/tensor_pairs.h"

namespace radam_fused {

// One thread at a time may step a plan, as it writes the state.
struct PreparedStep {
  TensorPairs pairs;
  torch::stable::Tensor pointer_table;
  StepArgs args;  // `scalars` and `zero_grads` are each step's own
  bool hold_gil;
  PyObject* kept;  // the Python objects of all tensors
  HeldGradients held;
};

// Of the capsule that prepare_step() has made; null, with an exception set, for any other object.
PreparedStep* prepared_step(PyObject* capsule);

inline torch::stable::Tensor tensor_of(PyObject* object) { return borrowed(handle_of(object)); }

inline std::optional<torch::stable::Tensor> optional_tensor_of(PyObject* object) {
  return object == Py_None ? std::nullopt : std::optional<torch::stable::Tensor>(tensor_of(object));
}

}  // namespace radam_fused
