// The scalars of a step from the optimizer's param_groups, for the Python module radam_fused._C.
#pragma once

#include <Python.h>

namespace radam_fused {

PyObject* write_scalars(PyObject* module, PyObject* args);

}  // namespace radam_fused
