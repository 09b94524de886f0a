#include "python/pointer_norm.h"

#include <cstdint>
#include <exception>

#include "cpu/grad_norm.h"
#include "python/gil.h"
#include "python/held_gradients.h"
#include "python/pairs_argument.h"
#include "python/tensor_pairs.h"

namespace radam_fused {
namespace {

// What the operator reads from its list of gradients; false if they have several dtypes.
bool read_gradients(const TensorPairs& pairs, GradNormArgs& grads) {
  grads.device = pairs.device;
  grads.segments.reserve(size_t(pairs.count));
  for (int64_t i = 0; i < pairs.count; ++i) {
    const TensorPair& pair = pairs.data[i];
    if (i == 0) grads.dtype = int(pair.grad_dtype);
    if (pair.grad_dtype != grads.dtype) return false;
    if (pair.numel == 0) continue;
    Segment segment{};
    segment.grad = pair.grad;
    segment.numel = pair.numel;
    segment.grad_dtype = grads.dtype;
    grads.segments.push_back(segment);
  }
  return pairs.count > 0;
}

}  // namespace

// grad_norm_from_pointers(pairs, held, sums, known) -> bool: reads the pairs as `read_pairs` does, and writes the
// partial sums of the gradients' squares, float64, from this address on. `known`: the gradients are where a call before
// has found them, and something else keeps them alive; nothing is read then. False, with nothing done, where
// `read_pairs` returns False, the gradients have several dtypes, or they are not on the CPU.
PyObject* grad_norm_from_pointers(PyObject*, PyObject* args) try {
  TensorPairs pairs;
  HeldGradients* held;
  unsigned long long sums;
  int known;
  if (!PyArg_ParseTuple(args, "O&O&Kp", parse_pairs, &pairs, held_gradients, &held, &sums, &known)) return nullptr;
  if (pairs.device.type != aoti_torch_device_type_cpu() || !(known || read_pairs(pairs))) Py_RETURN_FALSE;
  GradNormArgs grads;
  if (!read_gradients(pairs, grads)) Py_RETURN_FALSE;
  const auto add_up = [&] { run_grad_norm(grads, reinterpret_cast<double*>(sums)); };
  if (known) {
    without_gil(add_up);
  } else {
    const Holding holding(*held, pairs);
    without_gil(add_up);
  }
  Py_RETURN_TRUE;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

}  // namespace radam_fused
