// Releases the GIL.
#pragma once

#include <Python.h>

namespace radam_fused {

// Calls `work` without the GIL. No destructor takes the GIL back: while the interpreter ends, CPython unwinds a thread
// that asks for it, and an exception that leaves a destructor ends the process.
template <class Work>
void without_gil(const Work& work) {
  PyThreadState* const state = PyEval_SaveThread();
  try {
    work();
  } catch (...) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

}  // namespace radam_fused
