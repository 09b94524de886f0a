// The squares of a bucket's gradients, read by their addresses.
#pragma once

#include <Python.h>

namespace radam_fused {

// Reads the pairs and adds up the squares of their gradients, on the CPU.
PyObject* grad_norm_from_pointers(PyObject* module, PyObject* args);

}  // namespace radam_fused
