// The Python module radam_fused._C. Importing it loads the library, whose static initialisers register the operators.
// Its functions are loops over parameters that run in every step and would be slow in Python
// (radam_fused/cpp_helpers.py).
#include <Python.h>

#include <cstdint>

#include "cpu/cpu_capability.h"
#include "python/held_gradients.h"
#include "python/param_groups.h"
#include "python/pointer_norm.h"
#include "python/pointer_table.h"
#include "python/segment_table.h"
#include "python/sequence.h"
#include "python/step_counts.h"
#include "python/step_together.h"
#include "python/tensor_objects.h"

namespace {

using radam_fused::item_of;
using radam_fused::size_of;

PyObject* capability_name(PyObject*, PyObject*) { return PyUnicode_FromString(radam_fused::capability_name()); }

// Recorded ids of Python objects, read in order.
class Ids {
 public:
  explicit Ids(const uint64_t* at) : at_(at) {}

  uint64_t next() { return *at_++; }

  // Whether a list or tuple holds exactly the recorded objects that come next, after their number.
  bool identical(PyObject* sequence) {
    const Py_ssize_t size = size_of(sequence);
    if (size < 0 || next() != uint64_t(size)) return false;
    for (Py_ssize_t i = 0; i < size; ++i) {
      if (next() != reinterpret_cast<uint64_t>(item_of(sequence, i))) return false;
    }
    return true;
  }

  // The same of the values of a dict.
  bool holds_exactly(PyObject* dict) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    if (next() != uint64_t(PyDict_Size(dict))) return false;
    while (PyDict_Next(dict, &position, &key, &value)) {
      if (next() != reinterpret_cast<uint64_t>(value)) return false;
    }
    return true;
  }

 private:
  const uint64_t* at_;
};

// unchanged(groups, state, ids) -> bool: whether groups and state hold exactly the recorded objects. From the address
// `ids` on: the number of the state's values, then their ids; the number of groups; then for each group the number of
// its parameters, then their ids. The id of a dead object may be used again: the Python code that records them has to
// make sure that this does no harm.
PyObject* unchanged(PyObject*, PyObject* args) {
  PyObject *groups, *state;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "OO!K", &groups, &PyDict_Type, &state, &address)) return nullptr;
  static PyObject* const name = PyUnicode_InternFromString("params");
  Ids ids(reinterpret_cast<const uint64_t*>(address));
  const Py_ssize_t size = size_of(groups);
  bool same = size >= 0 && ids.holds_exactly(state) && ids.next() == uint64_t(size);
  for (Py_ssize_t i = 0; same && i < size; ++i) {
    PyObject* group = item_of(groups, i);
    PyObject* params = PyDict_Check(group) ? PyDict_GetItemWithError(group, name) : nullptr;
    same = params != nullptr && ids.identical(params);
  }
  return PyErr_Occurred() ? nullptr : PyBool_FromLong(same);
}

// params[i].grad, a new reference; prefetches a parameter that comes soon.
PyObject* grad_of(PyObject* params, Py_ssize_t i, Py_ssize_t size) {
  constexpr Py_ssize_t kAhead = 8;
  static PyObject* const name = PyUnicode_InternFromString("grad");
  if (PyList_Size(params) != size) {  // a property `grad` may run any code
    return PyErr_Format(PyExc_RuntimeError, "the list of parameters changed while their gradients were read");
  }
  if (i + kAhead < size) __builtin_prefetch(PyList_GetItem(params, i + kAhead));
  PyObject* param = PyList_GetItem(params, i);
  Py_INCREF(param);
  PyObject* grad = PyObject_GetAttr(param, name);
  Py_DECREF(param);
  return grad;
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
    {"cpu_capability", capability_name, METH_NOARGS, "The instruction set that the CPU kernels use on this machine."},
    {"unchanged", unchanged, METH_VARARGS, "Whether groups and state hold exactly the recorded objects."},
    {"gradients", gradients, METH_O, "The gradients of parameters, and the indices of those that have none."},
    {"find_tensor_offset", radam_fused::find_tensor_offset, METH_VARARGS,
     "Whether the pointer path works with this torch."},
    {"record_params", radam_fused::record_params, METH_VARARGS, "Records where the parameters' tensors are."},
    {"read_pairs", radam_fused::read_pairs, METH_VARARGS, "Reads the addresses of parameters and gradients; or False."},
    {"pairs_unmoved", radam_fused::pairs_unmoved, METH_VARARGS, "Whether pairs are where they were read."},
    {"counts_shown", radam_fused::counts_shown, METH_VARARGS, "Whether user code has written to no step count."},
    {"record_views", radam_fused::record_views, METH_VARARGS, "Records where tensors and their elements are."},
    {"share_no_memory", radam_fused::share_no_memory, METH_O, "Whether no two tensors can share memory."},
    {"views_intact", radam_fused::views_intact, METH_VARARGS, "Whether tensors' elements are where they were."},
    {"write_scalars", radam_fused::write_scalars, METH_VARARGS,
     "Computes the scalars of a step; False where Python has to."},
    {"prepare_step", radam_fused::prepare_step, METH_VARARGS, "What the steps of a plan have in common."},
    {"step_from_pointers", radam_fused::step_from_pointers, METH_VARARGS,
     "As read_pairs, and a step over them; or False."},
    {"hold_gradients", radam_fused::hold_gradients, METH_O, "Handles that can keep so many gradients alive."},
    {"release_gradients", radam_fused::release_gradients, METH_O, "Keeps gradients alive no longer."},
    {"fill_segments", radam_fused::fill_segments, METH_VARARGS,
     "As read_pairs, and fills in the table of a Triton kernel; or None."},
    {"fill_norm_segments", radam_fused::fill_norm_segments, METH_VARARGS,
     "As read_pairs, and fills in the table of a Triton kernel that adds squares; or None."},
    {"grad_norm_from_pointers", radam_fused::grad_norm_from_pointers, METH_VARARGS,
     "As read_pairs, and the partial sums of the gradients' squares; or False."},
    {"step_together", radam_fused::step_together, METH_VARARGS,
     "The steps of all buckets; False, or an error, for none."},
    {"count_step", radam_fused::count_step, METH_O, "Counts a step that has been launched."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
