// The pointer path: reads parameters and their gradients by the addresses of their tensors, for a step that needs no
// tensor lists. These are functions of the Python module radam_fused._C; pointer_table.cpp describes their arguments.
#pragma once

#include <Python.h>

namespace radam_fused {

// Records the tensors of a plan, once for all of its steps.
PyObject* record_params(PyObject* module, PyObject* args);
// Reads the addresses of all pairs, if the pointer path supports them.
PyObject* read_pairs(PyObject* module, PyObject* args);
// Whether all pairs are where they were.
PyObject* pairs_unmoved(PyObject* module, PyObject* args);
// Records the views in optimizer.state of a bucket, and whether their elements are where they were.
PyObject* record_views(PyObject* module, PyObject* args);
PyObject* views_intact(PyObject* module, PyObject* args);
// Whether no two tensors share memory.
PyObject* share_no_memory(PyObject* module, PyObject* tensors);
// What the steps of a plan have in common, parsed once.
PyObject* prepare_step(PyObject* module, PyObject* args);
// Reads the pairs and performs a step: on the CPU by a call, on a GPU by an operator of the CUDA library.
PyObject* step_from_pointers(PyObject* module, PyObject* args);

}  // namespace radam_fused
