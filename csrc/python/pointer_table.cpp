// The dispatcher spends several allocations and reference counts on each tensor of a list: more than the rest of a step
// costs for a small tensor; and reading `.grad` makes a Python object per gradient. But the Python object of a
// parameter contains an at::Tensor, whose address is a handle of the stable ABI (AtenTensorHandle).
// tensor_objects.cpp locates it inside the object. From there torch's own functions give everything else
// (libtorch_symbols.h). None of them needs the interpreter, so all threads take part.
#include "python/pointer_table.h"

#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/step.h"
#include "python/gil.h"
#include "python/held_gradients.h"
#include "python/libtorch_symbols.h"
#include "python/pairs_argument.h"
#include "python/prepared_step.h"
#include "python/step_counts.h"
#include "python/tensor_objects.h"
#include "python/tensor_pairs.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

// Whether a tensor's elements are at an address, and are so many.
bool is_at(PyObject* object, const void* address, int64_t numel) {
  const AtenTensorHandle tensor = handle_of(object);
  void* data;
  int64_t found;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &found));
  return data == address && found == numel;
}

constexpr Py_ssize_t kRequiredTensors = 5;  // of prepare_step(); the others may be None
constexpr const char* kPreparedStep = "radam_fused._C.prepare_step";

void destroy_prepared_step(PyObject* capsule) {
  PreparedStep* step = prepared_step(capsule);
  PyObject* kept = step->kept;
  delete step;
  Py_DECREF(kept);
}

// The step of a GPU is in another library, and so can be called only as an operator.
void call_operator(const Tensor& pointer_table, int param_dtype, const StepArgs& args) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(pointer_table),   from(int64_t(param_dtype)), from(args.exp_avg),
                          from(args.exp_avg_sq), from(args.segments),        from(args.scalar_index),
                          from(args.scalars),    from(args.zero_grads),      from(args.scales),
                          from(args.master),     from(args.stochastic),      from(args.rng_offsets)};
  if (torch_call_dispatcher("radam_fused::step_from_pointers", "", stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS)
    return;
  throw std::runtime_error(&libtorch::message != nullptr ? libtorch::message()
                                                         : "radam_fused::step_from_pointers: torch has printed why");
}

}  // namespace

PreparedStep* prepared_step(PyObject* capsule) {
  return static_cast<PreparedStep*>(PyCapsule_GetPointer(capsule, kPreparedStep));
}

// record_params(params, table) -> bool: writes to the pointer table at this address where each parameter's at::Tensor
// is. False if a parameter is not of torch's own types. The objects must outlive the table.
PyObject* record_params(PyObject*, PyObject* args) {
  PyObject* params;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "O!K", &PyList_Type, &params, &address)) return nullptr;
  auto* pairs = reinterpret_cast<TensorPair*>(address);
  for (Py_ssize_t i = 0; i < PyList_Size(params); ++i) {
    PyObject* param = PyList_GetItem(params, i);
    if (!is_plain_type(param)) Py_RETURN_FALSE;
    pairs[i].tensor = handle_of(param);
  }
  Py_RETURN_TRUE;
}

// read_pairs(table, segments, count, dtype, device_type, device_index) -> bool: reads the addresses of parameters and
// gradients into the table. False if a parameter has no gradient or a pair is not supported: the caller then passes
// tensor lists through the dispatcher, which checks everything again and reports what is wrong.
PyObject* read_pairs(PyObject*, PyObject* args) try {
  TensorPairs pairs;
  if (!parse_pairs(args, &pairs)) return nullptr;
  return PyBool_FromLong(read_pairs(pairs));
} catch (const std::exception& error) {  // there may be no memory to compare the addresses
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// pairs_unmoved(table, segments, count, dtype, device_type, device_index) -> bool: whether parameters and gradients are
// where the table has them, and no parameter has a gradient that the table has not. Does not read `segments`.
PyObject* pairs_unmoved(PyObject*, PyObject* args) {
  TensorPairs pairs;
  if (!parse_pairs(args, &pairs)) return nullptr;
  return PyBool_FromLong(are_unmoved(pairs));
}

// record_views(tensors, views) -> bool: writes to each View, from this address on, where a tensor's at::Tensor and its
// elements are. False if a tensor is not of torch's own types. The objects must outlive the views.
PyObject* record_views(PyObject*, PyObject* args) try {
  PyObject* tensors;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "O!K", &PyList_Type, &tensors, &address)) return nullptr;
  auto* views = reinterpret_cast<View*>(address);
  for (Py_ssize_t i = 0; i < PyList_Size(tensors); ++i) {
    PyObject* tensor = PyList_GetItem(tensors, i);
    if (!is_plain_type(tensor)) Py_RETURN_FALSE;
    views[i].tensor = handle_of(tensor);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(views[i].tensor, &views[i].data));
  }
  Py_RETURN_TRUE;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// share_no_memory(tensors) -> bool: whether no two of these strided tensors of one device can share memory. False also
// if one is not of torch's own types.
PyObject* share_no_memory(PyObject*, PyObject* tensors) try {
  if (!PyList_Check(tensors)) return PyErr_Format(PyExc_TypeError, "share_no_memory() takes a list of tensors");
  std::vector<MemorySpan> spans;
  for (Py_ssize_t i = 0; i < PyList_Size(tensors); ++i) {
    PyObject* object = PyList_GetItem(tensors, i);
    if (!is_plain_type(object)) Py_RETURN_FALSE;
    const AtenTensorHandle tensor = handle_of(object);
    const Shape shape = shape_of(tensor);
    const void* data;
    int32_t dtype;
    int64_t numel, reach = 1;
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &numel));
    for (int64_t d = 0; d < shape.dim; ++d) reach += (shape.size[d] - 1) * shape.stride[d];
    const char* begin = static_cast<const char*>(data);
    if (numel > 0) spans.push_back({begin, begin + reach * int64_t(aoti_torch_dtype_element_size(dtype))});
  }
  return PyBool_FromLong(are_apart(spans));
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// views_intact(views, count) -> bool: whether the elements of each View are where they were.
PyObject* views_intact(PyObject*, PyObject* args) {
  unsigned long long address;
  long long count;
  if (!PyArg_ParseTuple(args, "KL", &address, &count)) return nullptr;
  return PyBool_FromLong(are_intact(reinterpret_cast<const View*>(address), count));
}

// prepare_step((table, segments, count, dtype, device_type, device_index), hold_gil, (pointer_table, exp_avg,
// exp_avg_sq, segments, scalar_index, scales, master, rng_offsets), stochastic) -> PreparedStep, for
// step_from_pointers. `hold_gil`: do not release the GIL, for a step that takes less time than keeping every gradient
// alive would cost.
PyObject* prepare_step(PyObject*, PyObject* arguments) try {
  TensorPairs pairs;
  PyObject *tensors, *pointer_table, *exp_avg, *exp_avg_sq, *segments, *scalar_index, *scales, *master, *rng_offsets;
  int hold_gil, stochastic;
  if (!PyArg_ParseTuple(arguments, "O&pO!p", parse_pairs, &pairs, &hold_gil, &PyTuple_Type, &tensors, &stochastic) ||
      !PyArg_ParseTuple(tensors, "OOOOOOOO", &pointer_table, &exp_avg, &exp_avg_sq, &segments, &scalar_index, &scales,
                        &master, &rng_offsets)) {
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < PyTuple_Size(tensors); ++i) {
    PyObject* object = PyTuple_GetItem(tensors, i);
    if (!is_plain_type(object) && (object != Py_None || i < kRequiredTensors)) {
      return PyErr_Format(PyExc_TypeError, "prepare_step() takes tensors of torch's own types");
    }
  }
  if (!is_at(pointer_table, pairs.data, 5 * pairs.count) || !is_at(segments, pairs.segments, 2 * pairs.count)) {
    return PyErr_Format(PyExc_ValueError, "prepare_step() takes the tensors of the tables at these addresses");
  }
  auto step = std::unique_ptr<PreparedStep>(
      new PreparedStep{pairs,
                       tensor_of(pointer_table),
                       StepArgs{tensor_of(exp_avg), tensor_of(exp_avg_sq), tensor_of(segments), tensor_of(scalar_index),
                                tensor_of(segments), false, optional_tensor_of(scales), optional_tensor_of(master),
                                bool(stochastic), optional_tensor_of(rng_offsets)},
                       bool(hold_gil),
                       tensors,
                       {}});
  PyObject* capsule = PyCapsule_New(step.get(), kPreparedStep, destroy_prepared_step);
  if (capsule == nullptr) return nullptr;
  Py_INCREF(tensors);
  step.release();
  return capsule;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// step_from_pointers(prepared step, scalars, zero_grads, counts) -> bool: reads the pairs, raises the version counters
// of what is written, steps, and counts the step. It is one call so that no Python signal handler runs in between.
// False, with nothing done, where `read_pairs` returns False.
PyObject* step_from_pointers(PyObject*, PyObject* arguments) try {
  PyObject *capsule, *scalars, *counts_argument;
  int zero_grads;
  StepCounts counts;
  if (!PyArg_ParseTuple(arguments, "OOpO", &capsule, &scalars, &zero_grads, &counts_argument) ||
      !parse(counts_argument, counts)) {
    return nullptr;
  }
  PreparedStep* prepared = prepared_step(capsule);
  if (prepared == nullptr) return nullptr;
  if (!is_plain_type(scalars)) return PyErr_Format(PyExc_TypeError, "step_from_pointers() takes a tensor of scalars");
  const TensorPairs& pairs = prepared->pairs;
  if (!read_pairs(pairs)) Py_RETURN_FALSE;
  // Before the step: the gradients are certainly alive now, and this may raise.
  bump_versions(pairs, zero_grads);
  const bool on_cpu = pairs.device.type == aoti_torch_device_type_cpu();
  StepArgs& args = prepared->args;
  args.scalars = tensor_of(scalars);
  args.zero_grads = zero_grads;
  const auto step = [&] {
    if (on_cpu) {
      run_step(read_step_args(prepared->pointer_table, pairs.dtype, args), args.zero_grads);
    } else {
      call_operator(prepared->pointer_table, pairs.dtype, args);
    }
  };
  // On a GPU the GIL is always released: a launch may wait for room in the device's queue, and it takes a lock that
  // another thread may hold while that thread waits for the GIL.
  if (prepared->hold_gil && on_cpu) {
    step();
  } else {
    const Holding holding(prepared->held, pairs);
    without_gil(step);
  }
  add_step(counts);
  Py_RETURN_TRUE;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

}  // namespace radam_fused
