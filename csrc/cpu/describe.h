// Reads parameters and their gradients from Python objects, for a step that then needs no list of tensors.
#pragma once

#include <Python.h>

namespace radam_fused {

// Python functions of the module radam_fused._C; see describe.cpp.
PyObject* describe(PyObject* module, PyObject* args);
PyObject* prepare_describe(PyObject* module, PyObject* args);

}  // namespace radam_fused
