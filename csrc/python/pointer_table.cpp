// A list of tensors on its way through torch's dispatcher costs several allocations and reference counts a tensor, more
// than everything else that a step does for a small one; and a Python object for every gradient more still. But the
// Python object of a parameter holds an at::Tensor, and the address of one is what the stable ABI calls a handle
// (AtenTensorHandle). Where in the object it lies, `find_tensor_offset` finds out from tensors of which it knows
// everything; from there on torch's own functions tell the rest (libtorch.h), on all threads, as none of them needs
// the interpreter.
#include "python/pointer_table.h"

#include <cstring>
#include <exception>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/step.h"
#include "python/libtorch_symbols.h"
#include "python/step_counts.h"
#include "python/tensor_pairs.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

struct TensorObjects {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  Py_ssize_t handle = 0;  // where in an object its at::Tensor lies, in bytes
};

TensorObjects tensor_objects;

// Where the at::Tensor in an object is not known, no object is of a plain type: everything goes the ordinary way.
bool is_plain_type(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return tensor_objects.handle != 0 && (type == tensor_objects.parameter || type == tensor_objects.tensor);
}

AtenTensorHandle handle_of(PyObject* object, Py_ssize_t offset) {
  return reinterpret_cast<AtenTensorHandle>(reinterpret_cast<char*>(object) + offset);
}

// The interpreter runs other threads meanwhile.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

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

// As PyArg_ParseTuple wants them.
struct PairsArgument {
  unsigned long long scalars, segments;
  long long count;
  int dtype, device_type, device_index;

  TensorPairs pairs() const {
    return {reinterpret_cast<TensorPair*>(scalars),
            reinterpret_cast<const int64_t*>(segments),
            count,
            dtype,
            {device_type, device_index}};
  }
};

bool parse(PyObject* args, PairsArgument& given) {
  return PyArg_ParseTuple(args, "KKLiii", &given.scalars, &given.segments, &given.count, &given.dtype,
                          &given.device_type, &given.device_index);
}

Tensor tensor_of(PyObject* object) { return borrowed(handle_of(object, tensor_objects.handle)); }

std::optional<Tensor> optional_tensor_of(PyObject* object) {
  return object == Py_None ? std::nullopt : std::optional<Tensor>(tensor_of(object));
}

// What a step takes beside the pairs, as Python objects.
struct StepArgument {
  PyObject *pointer_table, *exp_avg, *exp_avg_sq, *segments, *scalar_index, *scalars, *scales, *master, *rng_offsets;
  int zero_grads, stochastic;

  void step(const TensorPairs& pairs) const {
    if (pairs.device.type == aoti_torch_device_type_cpu()) {
      step_from_pointers(tensor_of(pointer_table), pairs.dtype, tensor_of(exp_avg), tensor_of(exp_avg_sq),
                         tensor_of(segments), tensor_of(scalar_index), tensor_of(scalars), bool(zero_grads),
                         optional_tensor_of(scales), optional_tensor_of(master), bool(stochastic),
                         optional_tensor_of(rng_offsets));
    } else {
      call_operator(pairs);
    }
  }

 private:
  void call_operator(const TensorPairs& pairs) const {
    using torch::stable::detail::from;
    StableIValue stack[] = {
        from(tensor_of(pointer_table)),   from(int64_t(pairs.dtype)), from(tensor_of(exp_avg)),
        from(tensor_of(exp_avg_sq)),      from(tensor_of(segments)),  from(tensor_of(scalar_index)),
        from(tensor_of(scalars)),         from(bool(zero_grads)),     from(optional_tensor_of(scales)),
        from(optional_tensor_of(master)), from(bool(stochastic)),     from(optional_tensor_of(rng_offsets))};
    if (torch_call_dispatcher("radam_fused::step_described", "", stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS) {
      return;
    }
    throw std::runtime_error(&libtorch::message != nullptr ? libtorch::message()
                                                           : "radam_fused::step_described: torch has printed why");
  }
};

}  // namespace

// find_tensor_offset(Tensor, Parameter, samples, begin, end) -> bool. `samples` is a list of (tensor, address of its
// TensorImpl, data_ptr(), numel()), whose at::Tensor is looked for in the bytes [begin, end) of each object.
PyObject* find_tensor_offset(PyObject*, PyObject* args) {
  PyObject *tensor, *parameter, *samples;
  Py_ssize_t begin, end;
  if (!PyArg_ParseTuple(args, "OOO!nn", &tensor, &parameter, &PyList_Type, &samples, &begin, &end)) return nullptr;
  tensor_objects.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  tensor_objects.parameter = reinterpret_cast<PyTypeObject*>(parameter);
  tensor_objects.handle = libtorch::has_all() ? find_handle(samples, begin, end) : 0;
  if (PyErr_Occurred()) return nullptr;
  return PyBool_FromLong(tensor_objects.handle != 0);
}

// record_params(params, described) -> bool: notes in each Described, from this address on, where its parameter's
// at::Tensor is; false where one is of another type than torch's own. The objects have to outlive the table.
PyObject* record_params(PyObject*, PyObject* args) {
  PyObject* params;
  unsigned long long pointer_table;
  if (!PyArg_ParseTuple(args, "O!K", &PyList_Type, &params, &pointer_table)) return nullptr;
  auto* scalars = reinterpret_cast<TensorPair*>(pointer_table);
  for (Py_ssize_t i = 0; i < PyList_Size(params); ++i) {
    PyObject* param = PyList_GetItem(params, i);
    if (!is_plain_type(param)) Py_RETURN_FALSE;
    scalars[i].tensor = handle_of(param, tensor_objects.handle);
  }
  Py_RETURN_TRUE;
}

// read_pairs(*addresses) -> bool: fills in what a step changes. False where a parameter has no gradient or a pair is
// not plain: then the caller goes the ordinary way, by which everything is checked anew.
PyObject* read_pairs(PyObject*, PyObject* args) {
  PairsArgument given;
  if (!parse(args, given)) return nullptr;
  return PyBool_FromLong(read_pairs(given.pairs()));
}

// pairs_unmoved(*addresses) -> bool: whether parameters and gradients lie where the table says that they do, and no
// gradient is where it has none. `segments` is not looked at.
PyObject* pairs_unmoved(PyObject*, PyObject* args) {
  PairsArgument given;
  if (!parse(args, given)) return nullptr;
  return PyBool_FromLong(are_unmoved(given.pairs()));
}

// record_views(tensors, views) -> bool: notes in each View, from this address on, where its tensor's at::Tensor and
// its elements are; false where one is of another type than torch's own. The objects have to outlive the table.
PyObject* record_views(PyObject*, PyObject* args) try {
  PyObject* tensors;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "O!K", &PyList_Type, &tensors, &address)) return nullptr;
  auto* views = reinterpret_cast<View*>(address);
  for (Py_ssize_t i = 0; i < PyList_Size(tensors); ++i) {
    PyObject* tensor = PyList_GetItem(tensors, i);
    if (!is_plain_type(tensor)) Py_RETURN_FALSE;
    views[i].tensor = handle_of(tensor, tensor_objects.handle);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(views[i].tensor, &views[i].data));
  }
  Py_RETURN_TRUE;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// share_no_memory(tensors) -> bool: whether no two of these strided tensors of one device can share memory; false also
// where one is of another type than torch's own.
PyObject* share_no_memory(PyObject*, PyObject* tensors) try {
  if (!PyList_Check(tensors)) return PyErr_Format(PyExc_TypeError, "share_no_memory() takes a list of tensors");
  std::vector<MemorySpan> spans;
  for (Py_ssize_t i = 0; i < PyList_Size(tensors); ++i) {
    PyObject* object = PyList_GetItem(tensors, i);
    if (!is_plain_type(object)) Py_RETURN_FALSE;
    const AtenTensorHandle tensor = handle_of(object, tensor_objects.handle);
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

// step_from_pointers(addresses, brief, (described, exp_avg, exp_avg_sq, segments, scalar_index, rows, zero_grads,
// scales, residue, stochastic, origins), counts) -> bool: describes the pairs, raises the version counters of what is
// written, steps, and counts the step: in one call, so that no signal handler of Python's runs between the two. False,
// and nothing is done, where `read_pairs` says so. `brief` keeps the interpreter to this thread, for a step that takes
// less than it costs to keep every gradient alive.
PyObject* step_from_pointers(PyObject*, PyObject* args) try {
  PairsArgument given;
  StepArgument rest;
  int hold_gil;
  PyObject* counts_argument;
  StepCounts counts;
  if (!PyArg_ParseTuple(args, "(KKLiii)p(OOOOOOpOOpO)O", &given.scalars, &given.segments, &given.count, &given.dtype,
                        &given.device_type, &given.device_index, &hold_gil, &rest.pointer_table, &rest.exp_avg,
                        &rest.exp_avg_sq, &rest.segments, &rest.scalar_index, &rest.scalars, &rest.zero_grads,
                        &rest.scales, &rest.master, &rest.stochastic, &rest.rng_offsets, &counts_argument) ||
      !parse(counts_argument, counts)) {
    return nullptr;
  }
  const TensorPairs pairs = given.pairs();
  if (!read_pairs(pairs)) Py_RETURN_FALSE;
  // First, while every gradient is known to be there, and as it may raise.
  count_versions(pairs, rest.zero_grads);
  // The launch on a GPU may wait for room in its queue, and takes a lock that another thread may hold while it wants
  // the interpreter's: so it is never brief.
  if (hold_gil && given.device_type == aoti_torch_device_type_cpu()) {
    rest.step(pairs);
  } else {
    const HeldGradients held(pairs);
    const GilRelease swapped_bytes;
    rest.step(pairs);
  }
  add_step(counts);
  Py_RETURN_TRUE;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

}  // namespace radam_fused
