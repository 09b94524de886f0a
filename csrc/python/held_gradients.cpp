#include "python/held_gradients.h"

#include <exception>
#include <memory>

#include "python/libtorch_symbols.h"
#include "python/tensor_pairs.h"

namespace radam_fused {
namespace {

const char* const kName = "radam_fused._C.HeldGradients";

void destroy(PyObject* capsule) { delete static_cast<HeldGradients*>(PyCapsule_GetPointer(capsule, kName)); }

}  // namespace

HeldGradients::~HeldGradients() {
  for (AtenTensorHandle handle : handles_) aoti_torch_delete_tensor_object(handle);
  if (none_ != nullptr) aoti_torch_delete_tensor_object(none_);
}

void HeldGradients::prepare(int64_t count) {
  handles_.reserve(size_t(count));
  if (none_ == nullptr) TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&none_));
  while (int64_t(handles_.size()) < count) {
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&handle));
    handles_.push_back(handle);
  }
}

void HeldGradients::hold(const TensorPairs& pairs) try {
  prepare(pairs.count);
  for (held_ = 0; held_ < pairs.count; ++held_) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_assign_tensors(grad_of(impl_of(pairs.data[held_].tensor)), handles_[size_t(held_)]));
  }
} catch (...) {
  release();
  throw;
}

void HeldGradients::release() {
  while (held_ > 0) aoti_torch_assign_tensors(none_, handles_[size_t(--held_)]);
}

PyObject* hold_gradients(PyObject*, PyObject* argument) try {
  const long long count = PyLong_AsLongLong(argument);
  if (count == -1 && PyErr_Occurred()) return nullptr;
  if (count < 0) return PyErr_Format(PyExc_ValueError, "%lld gradients", count);
  auto held = std::make_unique<HeldGradients>();
  held->prepare(count);
  PyObject* capsule = PyCapsule_New(held.get(), kName, destroy);
  if (capsule != nullptr) held.release();
  return capsule;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

PyObject* release_gradients(PyObject*, PyObject* capsule) {
  HeldGradients* held;
  if (!held_gradients(capsule, &held)) return nullptr;
  held->release();
  Py_RETURN_NONE;
}

int held_gradients(PyObject* capsule, void* held) {
  void* found = PyCapsule_GetPointer(capsule, kName);
  *static_cast<HeldGradients**>(held) = static_cast<HeldGradients*>(found);
  return found != nullptr;
}

}  // namespace radam_fused
