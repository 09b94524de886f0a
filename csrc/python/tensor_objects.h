// Where the at::Tensor is inside the Python object of a tensor: a handle of the stable ABI (AtenTensorHandle).
#pragma once

#include <Python.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace radam_fused {

// Whether an object is of torch's own types, and its at::Tensor can be found.
bool is_plain_type(PyObject* object);

// The at::Tensor of an object of these types.
AtenTensorHandle handle_of(PyObject* object);

// For Python; see the definition.
PyObject* find_tensor_offset(PyObject*, PyObject* args);

}  // namespace radam_fused
