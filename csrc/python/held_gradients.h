// Keeps gradients alive while the GIL is released: another thread may replace `.grad` meanwhile.
#pragma once

#include <Python.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <vector>

namespace radam_fused {

struct TensorPairs;

// A handle for each gradient of a plan, made once: a handle a step would be a malloc a step, among all the chunks that
// the gradients of the step before have left free.
class HeldGradients {
 public:
  HeldGradients() = default;
  ~HeldGradients();
  HeldGradients(const HeldGradients&) = delete;
  HeldGradients& operator=(const HeldGradients&) = delete;

  void prepare(int64_t count);
  // Where it throws, it holds nothing.
  void hold(const TensorPairs& pairs);
  void release();

 private:
  std::vector<AtenTensorHandle> handles_;
  AtenTensorHandle none_ = nullptr;  // to an undefined tensor
  int64_t held_ = 0;
};

// Holds gradients for as long as it lives.
class Holding {
 public:
  Holding(HeldGradients& held, const TensorPairs& pairs) : held_(held) { held_.hold(pairs); }
  ~Holding() { held_.release(); }
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;

 private:
  HeldGradients& held_;
};

// hold_gradients(count) -> HeldGradients, for fill_segments and fill_norm_segments.
PyObject* hold_gradients(PyObject* module, PyObject* count);

// release_gradients(held): nothing keeps the gradients alive any longer.
PyObject* release_gradients(PyObject* module, PyObject* held);

// A converter for PyArg_ParseTuple's "O&", of what hold_gradients returned: 1, or 0 with an exception set.
int held_gradients(PyObject* capsule, void* held);

}  // namespace radam_fused
