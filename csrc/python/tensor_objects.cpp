// `find_tensor_offset` locates the at::Tensor with two sample tensors whose properties are known.
#include "python/tensor_objects.h"

#include <cstring>

#include "python/libtorch_symbols.h"

namespace radam_fused {
namespace {

struct TensorObjects {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  Py_ssize_t offset = 0;  // of the at::Tensor within the Python object, in bytes; 0: not found
};

TensorObjects tensor_objects;

AtenTensorHandle handle_at(PyObject* object, Py_ssize_t offset) {
  return reinterpret_cast<AtenTensorHandle>(reinterpret_cast<char*>(object) + offset);
}

// The offset of the at::Tensor in the samples' objects, by the known addresses of their TensorImpls; 0 unless exactly
// one offset fits all samples.
Py_ssize_t find_offset(PyObject* samples, Py_ssize_t begin, Py_ssize_t end) {
  Py_ssize_t found = 0;
  for (Py_ssize_t at = begin; at + Py_ssize_t(sizeof(void*)) <= end; at += sizeof(void*)) {
    bool fits = PyList_Size(samples) > 0;
    for (Py_ssize_t i = 0; fits && i < PyList_Size(samples); ++i) {
      PyObject* tensor;
      unsigned long long impl, data;
      long long numel;
      if (!PyArg_ParseTuple(PyList_GetItem(samples, i), "OKKL", &tensor, &impl, &data, &numel)) return 0;
      if (Py_TYPE(tensor) != tensor_objects.tensor && Py_TYPE(tensor) != tensor_objects.parameter) return 0;
      unsigned long long word;
      std::memcpy(&word, reinterpret_cast<char*>(tensor) + at, sizeof word);
      void* read_data = nullptr;
      int64_t read_numel = -1;
      fits = word == impl && aoti_torch_get_data_ptr(handle_at(tensor, at), &read_data) == AOTI_TORCH_SUCCESS &&
             aoti_torch_get_numel(handle_at(tensor, at), &read_numel) == AOTI_TORCH_SUCCESS &&
             reinterpret_cast<unsigned long long>(read_data) == data && read_numel == numel;
    }
    if (!fits) continue;
    if (found != 0) return 0;
    found = at;
  }
  return found;
}

}  // namespace

bool is_plain_type(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return tensor_objects.offset != 0 && (type == tensor_objects.parameter || type == tensor_objects.tensor);
}

AtenTensorHandle handle_of(PyObject* object) { return handle_at(object, tensor_objects.offset); }

// find_tensor_offset(Tensor, Parameter, samples, begin, end) -> bool: whether the pointer path works with this torch.
// `samples` is a list of (tensor, address of its TensorImpl, data_ptr(), numel()); the at::Tensor is looked for in the
// bytes [begin, end) of each object.
PyObject* find_tensor_offset(PyObject*, PyObject* args) {
  PyObject *tensor, *parameter, *samples;
  Py_ssize_t begin, end;
  if (!PyArg_ParseTuple(args, "OOO!nn", &tensor, &parameter, &PyList_Type, &samples, &begin, &end)) return nullptr;
  if (!PyType_Check(tensor) || !PyType_Check(parameter) ||
      !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(parameter), reinterpret_cast<PyTypeObject*>(tensor))) {
    return PyErr_Format(PyExc_TypeError, "find_tensor_offset() takes the types Tensor and Parameter");
  }
  tensor_objects.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  tensor_objects.parameter = reinterpret_cast<PyTypeObject*>(parameter);
  tensor_objects.offset = libtorch::has_all() ? find_offset(samples, begin, end) : 0;
  if (PyErr_Occurred()) return nullptr;
  return PyBool_FromLong(tensor_objects.offset != 0);
}

}  // namespace radam_fused
