// The pointer table that Python hands over: (table, segments, count, dtype, device_type, device_index), addresses as
// integers.
#pragma once

#include <Python.h>

namespace radam_fused {

// Reads that tuple into the TensorPairs at `pairs`. A converter for PyArg_ParseTuple's "O&": 1, or 0 with an exception
// set.
int parse_pairs(PyObject* tuple, void* pairs);

}  // namespace radam_fused
