#include "python/pairs_argument.h"

#include "python/tensor_pairs.h"

namespace radam_fused {

int parse_pairs(PyObject* tuple, void* pairs) {
  unsigned long long table, segments;
  long long count;
  int dtype, device_type, device_index;
  if (!PyTuple_Check(tuple)) {
    PyErr_Format(PyExc_TypeError, "a pointer table is a tuple of six integers");
    return 0;
  }
  if (!PyArg_ParseTuple(tuple, "KKLiii", &table, &segments, &count, &dtype, &device_type, &device_index)) return 0;
  if (count < 0) {
    PyErr_Format(PyExc_ValueError, "a pointer table of %lld pairs", count);
    return 0;
  }
  *static_cast<TensorPairs*>(pairs) = {reinterpret_cast<TensorPair*>(table),
                                       reinterpret_cast<const SegmentPlace*>(segments),
                                       count,
                                       dtype,
                                       {device_type, device_index}};
  return 1;
}

}  // namespace radam_fused
