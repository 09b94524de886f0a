// The table of segments that the Triton kernels read (radam_fused/backends/triton/tables.py), filled in from a pointer
// table, and what else a step needs that is launched from Python. segment_table.cpp describes the arguments.
#pragma once

#include <Python.h>

namespace radam_fused {

// Reads the pairs and writes their rows of the table.
PyObject* fill_segments(PyObject* module, PyObject* args);
// Reads the pairs and writes the rows of a norm's table.
PyObject* fill_norm_segments(PyObject* module, PyObject* args);
// Counts a step that has been launched.
PyObject* count_step(PyObject* module, PyObject* counts);

}  // namespace radam_fused
