#include "python/step_counts.h"

namespace radam_fused {

bool parse(PyObject* tuple, StepCounts& counts) {
  if (tuple == Py_None) return true;
  unsigned long long shown, taken, counted;
  long long size;
  if (!PyArg_ParseTuple(tuple, "KKLK", &shown, &taken, &size, &counted)) return false;
  counts = {reinterpret_cast<float*>(shown), reinterpret_cast<double*>(taken), size,
            reinterpret_cast<const float*>(counted)};
  return true;
}

void add_step(const StepCounts& counts) {
  if (counts.taken == nullptr) return;
  for (int64_t i = 0; i < counts.size; ++i) {
    counts.taken[i] += counts.counted == nullptr ? 1.0 : double(counts.counted[i]);
    counts.shown[i] = float(counts.taken[i]);
  }
}

PyObject* counts_shown(PyObject*, PyObject* args) {
  unsigned long long shown_at, taken_at;
  long long size;
  if (!PyArg_ParseTuple(args, "KKL", &shown_at, &taken_at, &size)) return nullptr;
  const auto* shown = reinterpret_cast<const float*>(shown_at);
  const auto* taken = reinterpret_cast<const double*>(taken_at);
  bool same = true;
  for (int64_t i = 0; i < size; ++i) same &= shown[i] == float(taken[i]);
  return PyBool_FromLong(same);
}

}  // namespace radam_fused
