// How many steps the parameters of a bucket have taken, where the host counts them (radam_fused/state/step_counts.py).
#pragma once

#include <Python.h>

#include <cstdint>

namespace radam_fused {

struct StepCounts {
  float* shown = nullptr;   // `taken` rounded, as optimizer.state shows it
  double* taken = nullptr;  // null: a scalars operator has counted the step
  int64_t size = 0;
  const float* counted = nullptr;  // 1 for a segment that takes the step, else 0; null: all take it
};

// Reads (shown, taken, size, counted), addresses as integers, or None.
bool parse(PyObject* tuple, StepCounts& counts);

// Counts one more step.
void add_step(const StepCounts& counts);

// counts_shown(shown, taken, size) -> bool: False if user code has written to a step count in optimizer.state.
PyObject* counts_shown(PyObject* module, PyObject* args);

}  // namespace radam_fused
