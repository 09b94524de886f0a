// Lists and tuples: user code may assign either to param_groups or to a group's "params".
#pragma once

#include <Python.h>

namespace radam_fused {

// The length of a list or a tuple; -1 for anything else.
inline Py_ssize_t size_of(PyObject* sequence) {
  return PyList_Check(sequence) ? PyList_Size(sequence) : PyTuple_Check(sequence) ? PyTuple_Size(sequence) : -1;
}

// A borrowed reference to an item of a list or a tuple; null, with IndexError set, if there is none.
inline PyObject* item_of(PyObject* sequence, Py_ssize_t index) {
  return PyList_Check(sequence) ? PyList_GetItem(sequence, index) : PyTuple_GetItem(sequence, index);
}

}  // namespace radam_fused
