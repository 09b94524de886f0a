// The step of all buckets in one call: everything is read, checked and allocated for all of them before the first one
// is stepped. From there on nothing allocates, so no lack of memory comes between two buckets, or between a step and
// its count.
#include "python/step_together.h"

#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "cpu/step.h"
#include "python/gil.h"
#include "python/held_gradients.h"
#include "python/libtorch_symbols.h"
#include "python/prepared_step.h"
#include "python/step_counts.h"

namespace radam_fused {
namespace {

using Handles = std::vector<AtenTensorHandle>;

enum class Reading { kFits, kDoesNotFit, kError };

// The steps of a call, ready to run.
class Steps {
 public:
  Steps(size_t count, bool zero_grads) : zero_grads_(zero_grads) {
    launches_.reserve(count);
    counts_.reserve(count);
    prepared_.reserve(count);
  }

  // (prepared step, scalars, counts): its pairs are read.
  Reading read_pointers(PyObject* item) {
    PyObject *capsule, *scalars, *counts;
    if (!PyArg_ParseTuple(item, "OOO", &capsule, &scalars, &counts) || !add_counts(counts)) return Reading::kError;
    PreparedStep* prepared = prepared_step(capsule);
    if (prepared == nullptr) return Reading::kError;
    const TensorPairs& pairs = prepared->pairs;
    if (!is_plain_type(scalars) || pairs.device.type != aoti_torch_device_type_cpu() ||
        !radam_fused::read_pairs(pairs)) {
      return Reading::kDoesNotFit;
    }
    prepared->args.scalars = tensor_of(scalars);
    prepared->args.zero_grads = zero_grads_;
    launches_.push_back(read_step_args(prepared->pointer_table, pairs.dtype, prepared->args));
    prepared_.push_back(prepared);
    hold_gil_ = hold_gil_ && prepared->hold_gil;
    return Reading::kFits;
  }

  // (params, grads, (exp_avg, exp_avg_sq, segments, scalar_index, scales, master, rng_offsets), stochastic, hold_gil,
  // scalars, counts): the lists of the step operator. They do not fit where torch's dispatcher would do more than pass
  // them on.
  Reading read_lists(PyObject* item) {
    PyObject *params, *grads, *tensors[7], *scalars, *counts;
    int stochastic, hold_gil;
    if (!PyArg_ParseTuple(item, "O!O!(OOOOOOO)ppOO", &PyList_Type, &params, &PyList_Type, &grads, &tensors[0],
                          &tensors[1], &tensors[2], &tensors[3], &tensors[4], &tensors[5], &tensors[6], &stochastic,
                          &hold_gil, &scalars, &counts) ||
        !add_counts(counts)) {
      return Reading::kError;
    }
    constexpr int kRequired = 4;  // the others may be None
    for (int i = 0; i < 7; ++i) {
      if (!is_plain_type(tensors[i]) && (tensors[i] != Py_None || i < kRequired)) return Reading::kDoesNotFit;
    }
    Handles written, read;
    if (!is_plain_type(scalars) || !is_on_cpu(handle_of(tensors[0])) || !add_plain(params, written) ||
        !add_plain(grads, read)) {
      return Reading::kDoesNotFit;
    }
    const StepArgs args{tensor_of(tensors[0]),
                        tensor_of(tensors[1]),
                        tensor_of(tensors[2]),
                        tensor_of(tensors[3]),
                        tensor_of(scalars),
                        zero_grads_,
                        optional_tensor_of(tensors[4]),
                        optional_tensor_of(tensors[5]),
                        bool(stochastic),
                        optional_tensor_of(tensors[6])};
    launches_.push_back(read_step_args(written, read, args));
    // Those are cleared by an operator of torch, which allocates.
    if (zero_grads_ && !launches_.back().overlapping.empty()) return Reading::kDoesNotFit;
    lists_.push_back(std::move(written));
    if (zero_grads_) lists_.push_back(std::move(read));
    hold_gil_ = hold_gil_ && bool(hold_gil);
    return Reading::kFits;
  }

  // Raises the version counters of what is written, steps all launches, and counts the steps.
  void run() {
    for (const PreparedStep* prepared : prepared_) bump_versions(prepared->pairs, zero_grads_);
    for (const Handles& tensors : lists_) {
      for (const AtenTensorHandle tensor : tensors) {
        if (!is_inference(tensor)) bump_version(tensor);
      }
    }
    const auto step = [this] {
      for (const Launch& launch : launches_) run_step(launch, zero_grads_);
    };
    if (hold_gil_) {
      step();
    } else {
      std::vector<std::unique_ptr<Holding>> holding;
      for (PreparedStep* prepared : prepared_) {
        holding.push_back(std::make_unique<Holding>(prepared->held, prepared->pairs));
      }
      without_gil(step);
    }
    for (const StepCounts& counts : counts_) add_step(counts);
  }

 private:
  bool add_counts(PyObject* argument) {
    counts_.emplace_back();
    return parse(argument, counts_.back());
  }

  // The handles of a list's tensors; false if torch's dispatcher would not pass one on as it is.
  static bool add_plain(PyObject* list, Handles& handles) {
    handles.reserve(size_t(PyList_Size(list)));
    for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
      PyObject* tensor = PyList_GetItem(list, i);
      if (!is_plain_type(tensor) || is_neg(handle_of(tensor))) return false;
      handles.push_back(handle_of(tensor));
    }
    return true;
  }

  const bool zero_grads_;
  bool hold_gil_ = true;
  std::vector<Launch> launches_;
  std::vector<StepCounts> counts_;
  std::vector<PreparedStep*> prepared_;
  std::vector<Handles> lists_;  // of tensors that are written
};

}  // namespace

// step_together(steps, zero_grads) -> bool: `steps` is a list with a tuple for each bucket (see `Steps`). False, with
// nothing done, where one of them has to go through torch's dispatcher.
PyObject* step_together(PyObject*, PyObject* arguments) try {
  PyObject* items;
  int zero_grads;
  if (!PyArg_ParseTuple(arguments, "O!p", &PyList_Type, &items, &zero_grads)) return nullptr;
  Steps steps(size_t(PyList_Size(items)), bool(zero_grads));
  for (Py_ssize_t i = 0; i < PyList_Size(items); ++i) {
    PyObject* item = PyList_GetItem(items, i);
    if (!PyTuple_Check(item)) return PyErr_Format(PyExc_TypeError, "step_together() takes a list of tuples");
    const Reading found = PyTuple_Size(item) == 3 ? steps.read_pointers(item) : steps.read_lists(item);
    if (found == Reading::kError) return nullptr;
    if (found == Reading::kDoesNotFit) Py_RETURN_FALSE;
  }
  steps.run();
  Py_RETURN_TRUE;
} catch (const std::bad_alloc&) {
  return PyErr_NoMemory();
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

}  // namespace radam_fused
