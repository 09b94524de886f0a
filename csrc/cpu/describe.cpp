// A list of tensors on its way through torch's dispatcher costs several allocations and reference counts a tensor, more
// than everything else that a step does for a small one. But the Python object of a tensor holds an at::Tensor, and the
// address of one is what the stable ABI calls a handle (AtenTensorHandle). Where in the object it lies,
// `prepare_describe` finds out from tensors of which it knows everything; all else is asked of the stable ABI.
#include "describe.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "../launch.h"

namespace radam_fused {
namespace {

constexpr Py_ssize_t kAhead = 8;  // tensors between asking for an object's memory and reading it

struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  Py_ssize_t handle = 0;  // where in an object its at::Tensor lies, in bytes
  getter get_grad = nullptr;
  void* get_grad_closure = nullptr;
  PyCFunction is_neg = nullptr;
};

Torch torch_types;

bool is_plain_type(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return type == torch_types.parameter || type == torch_types.tensor;
}

AtenTensorHandle handle_of(PyObject* object, Py_ssize_t offset) {
  return reinterpret_cast<AtenTensorHandle>(reinterpret_cast<char*>(object) + offset);
}

// What is read of a tensor's handle.
struct Read {
  Shape shape;
  int64_t numel;
  int dtype;
  void* data;
};

// False where it is not a row-major array on the device.
bool read(AtenTensorHandle tensor, const Device& device, Read& out) {
  if (!is_strided_on(tensor, device) || !is_contiguous(tensor)) return false;
  out.dtype = dtype_of(tensor);
  out.shape = shape_of(tensor);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &out.numel));
  if (out.numel > 0) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &out.data));
    if (out.data == nullptr) return false;  // zeros that have no memory
  }
  return true;
}

// Whether a tensor is what its memory says, and not what torch negates as it reads. Such a tensor is the imaginary part
// of another, with whose memory it comes; to ask each would cost as much as all the rest.
bool is_literal(PyObject* object, AtenTensorHandle tensor, const Read& read) {
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor, &bytes));
  if (bytes == read.numel * item_size(read.dtype)) return true;
  PyObject* negated = torch_types.is_neg(object, nullptr);
  Py_XDECREF(negated);
  return negated == Py_False;
}

struct Expected {
  int dtype;
  Device device;
};

// Fills in a pair, or returns false where it is not two row-major arrays as the moments were laid out for.
bool describe_pair(PyObject* param, PyObject* grad, const Expected& expected, int64_t layout, Described& out) try {
  const AtenTensorHandle handles[] = {handle_of(param, torch_types.handle), handle_of(grad, torch_types.handle)};
  Read p{}, g{};
  if (!read(handles[0], expected.device, p) || !read(handles[1], expected.device, g)) return false;
  if (p.dtype != expected.dtype || !supported(p.dtype, g.dtype)) return false;
  if (p.shape.dim != g.shape.dim || !std::equal(p.shape.size, p.shape.size + p.shape.dim, g.shape.size)) return false;
  if (fingerprint(p.shape) != layout) return false;
  if (!is_literal(param, handles[0], p) || !is_literal(grad, handles[1], g)) return false;
  out = {p.data, g.data, p.numel, g.dtype};
  return true;
} catch (const std::exception&) {
  return false;  // the ordinary way tells what is wrong with it
}

// The place of the at::Tensor in tensors' objects, whose TensorImpls are known; 0 where there is no telling.
Py_ssize_t find_handle(PyObject* samples, Py_ssize_t begin, Py_ssize_t end) {
  Py_ssize_t found = 0;
  for (Py_ssize_t at = begin; at + Py_ssize_t(sizeof(void*)) <= end; at += sizeof(void*)) {
    bool fits = PyList_Size(samples) > 0;
    for (Py_ssize_t i = 0; fits && i < PyList_Size(samples); ++i) {
      PyObject* tensor;
      unsigned long long impl, data;
      long long numel;
      if (!PyArg_ParseTuple(PyList_GetItem(samples, i), "OKKL", &tensor, &impl, &data, &numel)) return 0;
      unsigned long long word;
      std::memcpy(&word, reinterpret_cast<char*>(tensor) + at, sizeof word);
      void* read_data = nullptr;
      int64_t read_numel = -1;
      fits = word == impl && aoti_torch_get_data_ptr(handle_of(tensor, at), &read_data) == AOTI_TORCH_SUCCESS &&
             aoti_torch_get_numel(handle_of(tensor, at), &read_numel) == AOTI_TORCH_SUCCESS &&
             reinterpret_cast<unsigned long long>(read_data) == data && read_numel == numel;
    }
    if (!fits) continue;
    if (found != 0) return 0;
    found = at;
  }
  return found;
}

}  // namespace

// prepare_describe(Tensor, Parameter, TensorBase, samples, begin, end) -> bool: whether this torch has what `describe`
// needs. `samples` is a list of (tensor, address of its TensorImpl, data_ptr(), numel()), whose at::Tensor is looked
// for in the bytes [begin, end) of each object.
PyObject* prepare_describe(PyObject*, PyObject* args) {
  PyObject *tensor, *parameter, *base, *samples;
  Py_ssize_t begin, end;
  if (!PyArg_ParseTuple(args, "OOOO!nn", &tensor, &parameter, &base, &PyList_Type, &samples, &begin, &end)) {
    return nullptr;
  }
  torch_types.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  torch_types.parameter = reinterpret_cast<PyTypeObject*>(parameter);
  torch_types.handle = find_handle(samples, begin, end);
  if (PyErr_Occurred()) return nullptr;
  auto* properties = static_cast<PyGetSetDef*>(PyType_GetSlot(reinterpret_cast<PyTypeObject*>(base), Py_tp_getset));
  for (; properties != nullptr && properties->name != nullptr; ++properties) {
    if (std::strcmp(properties->name, "grad") != 0) continue;
    torch_types.get_grad = properties->get;
    torch_types.get_grad_closure = properties->closure;
  }
  auto* method = static_cast<PyMethodDef*>(PyType_GetSlot(reinterpret_cast<PyTypeObject*>(base), Py_tp_methods));
  for (; method != nullptr && method->ml_name != nullptr; ++method) {
    if (std::strcmp(method->ml_name, "is_neg") == 0 && method->ml_flags == METH_NOARGS) {
      torch_types.is_neg = method->ml_meth;
    }
  }
  return PyBool_FromLong(torch_types.handle != 0 && torch_types.get_grad != nullptr && torch_types.is_neg != nullptr);
}

// describe(params, described, segments, dtype, device_type, device_index) -> list of gradients, or None.
//
// `described` and `segments` are addresses: of a Described for each parameter, which is filled in and of int64 (n, 2),
// the operator's argument. None where a parameter has no gradient or a pair is not plain: then the caller goes the
// ordinary way, by which everything is checked anew. The list keeps the gradients alive.
PyObject* describe(PyObject*, PyObject* args) {
  PyObject* params;
  unsigned long long described_at, segments_at;
  int dtype, device_type, device_index;
  if (!PyArg_ParseTuple(args, "O!KKiii", &PyList_Type, &params, &described_at, &segments_at, &dtype, &device_type,
                        &device_index)) {
    return nullptr;
  }
  auto* described = reinterpret_cast<Described*>(described_at);
  const auto* segments = reinterpret_cast<const int64_t*>(segments_at);
  const Expected expected{dtype, {device_type, device_index}};
  const Py_ssize_t size = PyList_Size(params);
  PyObject* grads = PyList_New(size);
  if (grads == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < size; ++i) {
    if (i + kAhead < size) __builtin_prefetch(PyList_GetItem(params, i + kAhead));
    PyObject* param = PyList_GetItem(params, i);
    PyObject* grad = is_plain_type(param) ? torch_types.get_grad(param, torch_types.get_grad_closure) : nullptr;
    if (grad != nullptr) PyList_SetItem(grads, i, grad);  // takes the reference
    if (grad == nullptr || !is_plain_type(grad) ||
        !describe_pair(param, grad, expected, segments[2 * i + 1], described[i])) {
      PyErr_Clear();
      Py_DECREF(grads);
      Py_RETURN_NONE;
    }
  }
  return grads;
}

}  // namespace radam_fused
