// The Python face of the extension. Importing radam_fused._C loads the library, whose static initialisers register the
// operators; the module itself holds loops over parameters that every step makes and Python would make slowly
// (radam_fused/host.py has the same in Python).
#include <Python.h>

#include "describe.h"
#include "group_rows.h"
#include "isa.h"
#include "sequence.h"

namespace {

using radam_fused::item_of;
using radam_fused::size_of;

PyObject* instruction_set(PyObject*, PyObject*) { return PyUnicode_FromString(radam_fused::instruction_set()); }

// Whether a list or a tuple holds the very objects of a list.
bool identical(PyObject* a, PyObject* b) {
  const Py_ssize_t size = PyList_Size(b);
  if (size_of(a) != size) return false;
  for (Py_ssize_t i = 0; i < size; ++i) {
    if (item_of(a, i) != PyList_GetItem(b, i)) return false;
  }
  return true;
}

// Whether the values of a dict are the very objects of a list, in order.
bool holds_exactly(PyObject* dict, PyObject* values) {
  const Py_ssize_t size = PyList_Size(values);
  if (PyDict_Size(dict) != size) return false;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (Py_ssize_t i = 0; i < size && PyDict_Next(dict, &position, &key, &value); ++i) {
    if (value != PyList_GetItem(values, i)) return false;
  }
  return true;
}

PyObject* unchanged(PyObject*, PyObject* args) {
  PyObject *groups, *members, *state, *entries;
  if (!PyArg_ParseTuple(args, "OO!O!O!", &groups, &PyList_Type, &members, &PyDict_Type, &state, &PyList_Type,
                        &entries)) {
    return nullptr;
  }
  static PyObject* const name = PyUnicode_InternFromString("params");
  const Py_ssize_t size = size_of(groups);
  bool same = PyList_Size(members) == size && holds_exactly(state, entries);
  for (Py_ssize_t i = 0; same && i < size; ++i) {
    PyObject* group = item_of(groups, i);
    PyObject* params = PyDict_Check(group) ? PyDict_GetItemWithError(group, name) : nullptr;
    same = params != nullptr && identical(params, PyList_GetItem(members, i));
  }
  return PyErr_Occurred() ? nullptr : PyBool_FromLong(same);
}

// The attribute "grad" of params[i], a new reference; asks for the memory of one that comes soon.
PyObject* grad_of(PyObject* params, Py_ssize_t i, Py_ssize_t size) {
  constexpr Py_ssize_t kAhead = 8;
  static PyObject* const name = PyUnicode_InternFromString("grad");
  if (i + kAhead < size) __builtin_prefetch(PyList_GetItem(params, i + kAhead));
  return PyObject_GetAttr(PyList_GetItem(params, i), name);
}

PyObject* gradients(PyObject*, PyObject* params) {
  if (!PyList_Check(params)) return PyErr_Format(PyExc_TypeError, "gradients() takes a list of parameters");
  PyObject* grads = PyList_New(0);
  PyObject* missing = PyList_New(0);
  const Py_ssize_t size = PyList_Size(params);
  bool fine = grads != nullptr && missing != nullptr;
  for (Py_ssize_t i = 0; fine && i < size; ++i) {
    PyObject* grad = grad_of(params, i, size);
    if (grad == nullptr) {
      fine = false;
    } else if (grad == Py_None) {
      PyObject* index = PyLong_FromSsize_t(i);
      fine = index != nullptr && PyList_Append(missing, index) == 0;
      Py_XDECREF(index);
    } else {
      fine = PyList_Append(grads, grad) == 0;
    }
    Py_XDECREF(grad);
  }
  PyObject* result = fine ? PyTuple_Pack(2, grads, missing) : nullptr;
  Py_XDECREF(grads);
  Py_XDECREF(missing);
  return result;
}

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "The instruction set that the CPU kernels use on this machine."},
    {"unchanged", unchanged, METH_VARARGS, "Whether groups and state hold the very objects that they did."},
    {"gradients", gradients, METH_O, "The gradients of parameters, and the indices of those that have none."},
    {"prepare_describe", radam_fused::prepare_describe, METH_VARARGS, "Whether this torch has what describe needs."},
    {"describe_tensors", radam_fused::describe_tensors, METH_VARARGS, "Notes where the parameters' tensors are."},
    {"describe", radam_fused::describe, METH_VARARGS, "Fills in plain pairs of parameters and gradients; or False."},
    {"in_place", radam_fused::in_place, METH_VARARGS, "Whether pairs lie where they were described to."},
    {"count_steps", radam_fused::count_steps, METH_O, "Adds one to every element of a float32 array."},
    {"write_rows", radam_fused::write_rows, METH_VARARGS, "The rows of a step; False where Python has to make them."},
    {"step_described", radam_fused::step_described, METH_VARARGS, "As describe, and a step over them; or False."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
