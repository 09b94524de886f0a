// Reads parameters and their gradients by the addresses of the tensors' objects, for a step that then needs no list of
// tensors. The functions are those of the Python module radam_fused._C; see pointer_table.cpp.
#pragma once

#include <Python.h>

namespace radam_fused {

// Whether this torch has what the others need.
PyObject* find_tensor_offset(PyObject* module, PyObject* args);
// The tensors of a plan, once for all of its steps.
PyObject* record_params(PyObject* module, PyObject* args);
// Whether all pairs are plain, with their addresses.
PyObject* read_pairs(PyObject* module, PyObject* args);
// Whether all pairs lie where they did.
PyObject* pairs_unmoved(PyObject* module, PyObject* args);
// The views of a bucket that optimizer.state shows, and whether their elements are where they were.
PyObject* record_views(PyObject* module, PyObject* args);
PyObject* views_intact(PyObject* module, PyObject* args);
// Whether tensors share no memory.
PyObject* share_no_memory(PyObject* module, PyObject* tensors);
// A step over what is described anew: on a GPU by the operator of that name.
PyObject* step_from_pointers(PyObject* module, PyObject* args);

}  // namespace radam_fused
