// A list of tensors on its way through torch's dispatcher costs several allocations and reference counts a tensor, more
// than everything else that a step does for a small one. DLPack's exchange API gives what a kernel needs of a tensor,
// from its Python object, in one call that allocates nothing (dlpack.h, DLPackDLTensorFromPyObjectNoSync).
#include "describe.h"

#include <algorithm>
#include <cstring>

#include "../launch.h"
#include "dlpack.h"

namespace radam_fused {
namespace {

constexpr Py_ssize_t kAhead = 8;  // tensors between asking for an object's memory and reading it

struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  int (*read)(void* object, DlpackTensor* out) = nullptr;
  getter get_grad = nullptr;
  void* get_grad_closure = nullptr;
};

Torch torch_types;

bool is_plain_type(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return type == torch_types.parameter || type == torch_types.tensor;
}

int dtype_of(const DlpackDtype& type) {
  if (type.lanes != 1) return kUnsupported;
  if (type.code == kDlpackBfloat) return type.bits == 16 ? kBFloat16 : kUnsupported;
  if (type.code != kDlpackFloat) return kUnsupported;
  return type.bits == 32 ? kFloat32 : type.bits == 16 ? kFloat16 : type.bits == 64 ? kFloat64 : kUnsupported;
}

bool is_contiguous(const DlpackTensor& tensor) {
  int64_t expected = 1;
  for (int32_t d = tensor.ndim; d-- > 0;) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

struct Expected {
  int dtype;
  DlpackDevice device;
};

// Fills in a pair, or returns false where it is not two row-major arrays as the moments were laid out for.
bool describe_pair(PyObject* param, PyObject* grad, const Expected& expected, int64_t layout, Described& out) {
  DlpackTensor p, g;
  if (torch_types.read(param, &p) != 0 || torch_types.read(grad, &g) != 0) {
    PyErr_Clear();  // the ordinary way tells what is wrong with it
    return false;
  }
  const auto here = [&](const DlpackDevice& device) {
    return device.type == expected.device.type && device.index == expected.device.index;
  };
  if (!here(p.device) || !here(g.device) || dtype_of(p.dtype) != expected.dtype) return false;
  if (p.ndim != g.ndim || !std::equal(p.shape, p.shape + p.ndim, g.shape)) return false;
  if (fingerprint(Shape{p.shape, p.strides, p.ndim}) != layout || !is_contiguous(p) || !is_contiguous(g)) return false;
  out.numel = 1;
  for (int32_t d = 0; d < p.ndim; ++d) out.numel *= p.shape[d];
  out.grad_dtype = dtype_of(g.dtype);
  out.param = static_cast<char*>(p.data) + p.byte_offset;
  out.grad = static_cast<char*>(g.data) + g.byte_offset;
  return supported(expected.dtype, int(out.grad_dtype));
}

}  // namespace

// prepare_describe(Tensor, Parameter, TensorBase) -> bool: whether this torch has what `describe` needs.
PyObject* prepare_describe(PyObject*, PyObject* args) {
  PyObject *tensor, *parameter, *base;
  if (!PyArg_ParseTuple(args, "OOO", &tensor, &parameter, &base)) return nullptr;
  PyObject* capsule = PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) {
    PyErr_Clear();
    Py_RETURN_FALSE;
  }
  const auto* api = static_cast<const DlpackExchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  if (api == nullptr) PyErr_Clear();
  if (api == nullptr || api->version.major != kDlpackMajorVersion) Py_RETURN_FALSE;
  torch_types.read = api->tensor_from_object;
  torch_types.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  torch_types.parameter = reinterpret_cast<PyTypeObject*>(parameter);
  auto* properties = static_cast<PyGetSetDef*>(PyType_GetSlot(reinterpret_cast<PyTypeObject*>(base), Py_tp_getset));
  for (; properties != nullptr && properties->name != nullptr; ++properties) {
    if (std::strcmp(properties->name, "grad") != 0) continue;
    torch_types.get_grad = properties->get;
    torch_types.get_grad_closure = properties->closure;
  }
  return PyBool_FromLong(torch_types.read != nullptr && torch_types.get_grad != nullptr);
}

// describe(params, described, segments, dtype, device_type, device_index) -> list of gradients, or None.
//
// `described` and `segments` are addresses: of a Described for each parameter, which is filled in, and of int64 (n, 2),
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
