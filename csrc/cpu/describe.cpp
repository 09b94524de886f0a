// A list of tensors on its way through torch's dispatcher costs several allocations and reference counts a tensor, more
// than everything else that a step does for a small one; and a Python object for every gradient more still. But the
// Python object of a parameter holds an at::Tensor, and the address of one is what the stable ABI calls a handle
// (AtenTensorHandle). Where in the object it lies, `prepare_describe` finds out from tensors of which it knows
// everything; from there on torch's own functions tell the rest (torch_cpp.h), on all threads, as none of them needs
// the interpreter.
#include "describe.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <optional>
#include <vector>

#include "../launch.h"
#include "torch_cpp.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

constexpr int64_t kPairsPerThread = 1024;  // some 30 us
constexpr int kStretch = 32;               // pairs whose cache misses are waited for together

struct Known {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  Py_ssize_t handle = 0;            // where in an object its at::Tensor lies, in bytes
  const void* undefined = nullptr;  // the TensorImpl of no tensor
};

Known known;

bool is_plain_type(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return type == known.parameter || type == known.tensor;
}

AtenTensorHandle handle_of(PyObject* object, Py_ssize_t offset) {
  return reinterpret_cast<AtenTensorHandle>(reinterpret_cast<char*>(object) + offset);
}

// What `describe` and its like are called with first: radam_fused/launches.py, Addresses.
struct Pairs {
  Described* rows;
  const int64_t* segments;  // (n, 2), the operator's argument
  int64_t count;
  int dtype;
  Device device;
};

struct Read {
  Shape shape;
  int dtype;
};

bool is_on(AtenTensorHandle tensor, const Device& device) {
  const Device found = device_of(tensor);
  return found.type == device.type && found.index == device.index;
}

// Whether a gradient lies as its parameter does. Where a dimension has one place its stride does not matter.
bool alike(const Shape& a, const Shape& b) {
  if (a.dim != b.dim) return false;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] != b.size[d] || (a.stride[d] != b.stride[d] && a.size[d] != 1)) return false;
  }
  return true;
}

// The address of a tensor's elements; false where it has none of its own, or torch negates them as it reads.
bool address_of(AtenTensorHandle tensor, void*& data) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  return data != nullptr && !is_neg(tensor);
}

// Fills in a pair, or returns false where it is not two arrays in the order that the moments were laid out in.
bool describe_pair(AtenTensorHandle grad, const Pairs& pairs, int64_t layout, Described& row) try {
  if (impl_of(grad) == known.undefined) return false;
  if (!is_on(row.tensor, pairs.device) || !is_strided_on(grad, pairs.device)) return false;
  const Shape shape = shape_of(row.tensor);
  const int grad_dtype = dtype_of(grad);
  if (dtype_of(row.tensor) != pairs.dtype || !supported(pairs.dtype, grad_dtype)) return false;
  if (fingerprint(shape) != layout || !alike(shape, shape_of(grad))) return false;
  row.grad_dtype = grad_dtype;
  return row.numel == 0 || (address_of(row.tensor, row.param) && address_of(grad, row.grad));
} catch (const std::exception&) {
  return false;  // the ordinary way tells what is wrong with it
}

// Whether a parameter and its gradient lie where a row says; without an address for the gradient, that there is none.
bool lies_in_place(const Described& row, const Pairs& pairs) try {
  const AtenTensorHandle grad = radam_fused::grad_of(impl_of(row.tensor));
  void* data;
  if (row.numel > 0 && !(is_on(row.tensor, pairs.device) && address_of(row.tensor, data) && data == row.param)) {
    return false;
  }
  if (impl_of(grad) == known.undefined || row.grad == nullptr) {
    return impl_of(grad) == known.undefined && row.grad == nullptr;
  }
  return is_strided_on(grad, pairs.device) && dtype_of(grad) == pairs.dtype &&
         alike(shape_of(row.tensor), shape_of(grad)) &&
         (row.numel == 0 || (address_of(grad, data) && data == row.grad));
} catch (const std::exception&) {
  return false;
}

// Asks for a TensorImpl, some 200 bytes.
void prefetch_impl(const void* impl) {
  for (int at = 0; at < 256; at += 64) __builtin_prefetch(static_cast<const char*>(impl) + at);
}

// Asks for what the first words of a TensorImpl point to: its storage and what autograd knows, in whatever order. To
// ask for what is no address does no harm.
void prefetch_parts(const void* impl) {
  for (int word = 1; word < 6; ++word) __builtin_prefetch(static_cast<void* const*>(impl)[word]);
}

// Each pair is a chain of some six cache misses, one link leading to the next: a stretch of pairs takes every link
// together.
bool describe_range(const Pairs& pairs, int64_t begin, int64_t end) {
  const void* impls[kStretch];
  AtenTensorHandle grads[kStretch];
  for (int64_t at = begin; at < end; at += kStretch) {
    Described* rows = pairs.rows + at;
    const int n = int(std::min<int64_t>(kStretch, end - at));
    for (int i = 0; i < n; ++i) prefetch_impl(impls[i] = impl_of(rows[i].tensor));
    for (int i = 0; i < n; ++i) prefetch_parts(impls[i]);
    for (int i = 0; i < n; ++i) prefetch_impl(impl_of(grads[i] = radam_fused::grad_of(impls[i])));
    for (int i = 0; i < n; ++i) prefetch_parts(impl_of(grads[i]));
    for (int i = 0; i < n; ++i) {
      if (!describe_pair(grads[i], pairs, pairs.segments[2 * (at + i) + 1], rows[i])) return false;
    }
  }
  return true;
}

bool describe_all(const Pairs& pairs) {
  std::atomic<bool> plain{true};
  torch::stable::parallel_for(0, pairs.count, kPairsPerThread, [&](int64_t begin, int64_t end) {
    if (!describe_range(pairs, begin, end)) plain = false;
  });
  return plain;
}

AtenTensorHandle grad_of(const Described& row) { return radam_fused::grad_of(impl_of(row.tensor)); }

// Raises the version counters that autograd compares, of parameters and, where they were cleared, of gradients.
void count_versions(const Pairs& pairs, bool of_grads) {
  for (int64_t at = 0; at < pairs.count; at += kStretch) {
    const int64_t end = std::min(at + kStretch, pairs.count);
    for (int64_t i = at; i < end; ++i) prefetch_parts(impl_of(pairs.rows[i].tensor));
    for (int64_t i = at; i < end; ++i) bump_version(pairs.rows[i].tensor);
    for (int64_t i = at; i < end && of_grads; ++i) bump_version(grad_of(pairs.rows[i]));
  }
}

// The gradients of described pairs, kept alive while the interpreter runs other threads, which may replace them.
class Held {
 public:
  explicit Held(const Pairs& pairs) : tensors_(pairs.count, nullptr) {
    for (int64_t i = 0; i < pairs.count; ++i) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(grad_of(pairs.rows[i]), &tensors_[i]));
    }
  }
  ~Held() {
    for (size_t i = tensors_.size(); i-- > 0;) aoti_torch_delete_tensor_object(tensors_[i]);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  std::vector<AtenTensorHandle> tensors_;
};

// The interpreter runs other threads meanwhile.
class OtherThreads {
 public:
  OtherThreads() : state_(PyEval_SaveThread()) {}
  ~OtherThreads() { PyEval_RestoreThread(state_); }

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
  unsigned long long rows, segments;
  long long count;
  int dtype, device_type, device_index;

  Pairs pairs() const {
    return {reinterpret_cast<Described*>(rows),
            reinterpret_cast<const int64_t*>(segments),
            count,
            dtype,
            {device_type, device_index}};
  }
};

bool parse(PyObject* args, PairsArgument& given) {
  return PyArg_ParseTuple(args, "KKLiii", &given.rows, &given.segments, &given.count, &given.dtype, &given.device_type,
                          &given.device_index);
}

StableIValue tensor_argument(PyObject* tensor) {
  return torch::stable::detail::from(borrowed(handle_of(tensor, known.handle)));
}

StableIValue optional_argument(PyObject* tensor) {
  if (tensor == Py_None) return torch::stable::detail::from(std::optional<Tensor>());
  return torch::stable::detail::from(std::optional<Tensor>(borrowed(handle_of(tensor, known.handle))));
}

}  // namespace

// prepare_describe(Tensor, Parameter, samples, begin, end) -> bool. `samples` is a list of (tensor, address of its
// TensorImpl, data_ptr(), numel()), without gradients, whose at::Tensor is looked for in the bytes [begin, end) of each
// object.
PyObject* prepare_describe(PyObject*, PyObject* args) {
  PyObject *tensor, *parameter, *samples;
  Py_ssize_t begin, end;
  if (!PyArg_ParseTuple(args, "OOO!nn", &tensor, &parameter, &PyList_Type, &samples, &begin, &end)) return nullptr;
  known.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  known.parameter = reinterpret_cast<PyTypeObject*>(parameter);
  known.handle = torch_cpp::has_all() ? find_handle(samples, begin, end) : 0;
  if (PyErr_Occurred()) return nullptr;
  if (known.handle == 0) Py_RETURN_FALSE;
  PyObject* sample = PyTuple_GetItem(PyList_GetItem(samples, 0), 0);
  known.undefined = impl_of(radam_fused::grad_of(impl_of(handle_of(sample, known.handle))));
  Py_RETURN_TRUE;
}

// describe_tensors(params, described) -> bool: notes in each Described, from this address on, where its parameter's
// at::Tensor is; false where one is of another type than torch's own. The objects have to outlive the table.
PyObject* describe_tensors(PyObject*, PyObject* args) {
  PyObject* params;
  unsigned long long described;
  if (!PyArg_ParseTuple(args, "O!K", &PyList_Type, &params, &described)) return nullptr;
  auto* rows = reinterpret_cast<Described*>(described);
  for (Py_ssize_t i = 0; i < PyList_Size(params); ++i) {
    PyObject* param = PyList_GetItem(params, i);
    if (!is_plain_type(param)) Py_RETURN_FALSE;
    rows[i].tensor = handle_of(param, known.handle);
  }
  Py_RETURN_TRUE;
}

// describe(*addresses) -> bool: fills in what a step changes. False where a parameter has no gradient or a pair is not
// plain: then the caller goes the ordinary way, by which everything is checked anew.
PyObject* describe(PyObject*, PyObject* args) {
  PairsArgument given;
  if (!parse(args, given)) return nullptr;
  return PyBool_FromLong(describe_all(given.pairs()));
}

// in_place(*addresses) -> bool: whether parameters and gradients lie where the table says that they do, and no gradient
// is where it has none. `segments` is not looked at.
PyObject* in_place(PyObject*, PyObject* args) {
  PairsArgument given;
  if (!parse(args, given)) return nullptr;
  const Pairs pairs = given.pairs();
  for (int64_t i = 0; i < pairs.count; ++i) {
    if (!lies_in_place(pairs.rows[i], pairs)) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

// hold_gradients(*addresses) -> object or None: the same for more than one call; the gradients live as long as the
// object does. None where `describe` says False.
PyObject* hold_gradients(PyObject*, PyObject* args) try {
  PairsArgument given;
  if (!parse(args, given)) return nullptr;
  const Pairs pairs = given.pairs();
  if (!describe_all(pairs)) Py_RETURN_NONE;
  return PyCapsule_New(new Held(pairs), nullptr,
                       [](PyObject* capsule) { delete static_cast<Held*>(PyCapsule_GetPointer(capsule, nullptr)); });
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// step_described(addresses, brief, (described, exp_avg, exp_avg_sq, segments, row_of, rows, zero_grads, scales,
// residue, stochastic, origins)) -> bool: describes the pairs, calls the operator of that name and raises the version
// counters of what it has written. False, and nothing is done, where `describe` says so. `brief` keeps the interpreter
// to this thread, for a step that takes less than it costs to keep each gradient alive.
PyObject* step_described(PyObject*, PyObject* args) try {
  PairsArgument given;
  PyObject *described, *exp_avg, *exp_avg_sq, *segments, *row_of, *rows, *scales, *residue, *origins;
  int brief, zero_grads, stochastic;
  if (!PyArg_ParseTuple(args, "(KKLiii)p(OOOOOOpOOpO)", &given.rows, &given.segments, &given.count, &given.dtype,
                        &given.device_type, &given.device_index, &brief, &described, &exp_avg, &exp_avg_sq, &segments,
                        &row_of, &rows, &zero_grads, &scales, &residue, &stochastic, &origins)) {
    return nullptr;
  }
  const Pairs pairs = given.pairs();
  if (!describe_all(pairs)) Py_RETURN_FALSE;
  StableIValue stack[] = {tensor_argument(described),
                          torch::stable::detail::from(int64_t(given.dtype)),
                          tensor_argument(exp_avg),
                          tensor_argument(exp_avg_sq),
                          tensor_argument(segments),
                          tensor_argument(row_of),
                          tensor_argument(rows),
                          torch::stable::detail::from(bool(zero_grads)),
                          optional_argument(scales),
                          optional_argument(residue),
                          torch::stable::detail::from(bool(stochastic)),
                          optional_argument(origins)};
  const auto call = [&] {
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("radam_fused::step_described", "", stack, TORCH_ABI_VERSION));
  };
  if (brief) {
    call();
  } else {
    const Held held(pairs);
    const OtherThreads others;
    call();
  }
  count_versions(pairs, zero_grads);
  Py_RETURN_TRUE;
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

}  // namespace radam_fused
