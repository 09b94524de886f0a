// The step of all buckets at once, on the CPU.
#pragma once

#include <Python.h>

namespace radam_fused {

// Reads the steps of all buckets, then takes them and counts them.
PyObject* step_together(PyObject* module, PyObject* args);

}  // namespace radam_fused
