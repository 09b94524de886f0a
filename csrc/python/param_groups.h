// The rows of a step from the optimizer's param_groups, for the Python module radam_fused._C; see group_rows.cpp.
#pragma once

#include <Python.h>

namespace radam_fused {

PyObject* write_scalars(PyObject* module, PyObject* args);

}  // namespace radam_fused
