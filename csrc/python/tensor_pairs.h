// Pairs of a parameter and its gradient, read through the addresses of their tensors.
#pragma once

#include <vector>

#include "args/step_args.h"

namespace radam_fused {

struct TensorPairs {
  TensorPair* data;              // the pointer table; tensor and numel of each pair are known
  const SegmentPlace* segments;  // the operator's argument
  int64_t count;
  int dtype;  // of the parameters
  Device device;
};

// The bytes from a tensor's first element to its last.
struct MemorySpan {
  const char* begin;
  const char* end;
};

// Whether no two spans overlap; sorts them.
bool are_apart(std::vector<MemorySpan>& spans);

// Reads all pairs, on all threads. False if a parameter has no gradient, a pair is not two arrays in the order of their
// moments, or parameters have moved and two now share memory.
bool read_pairs(const TensorPairs& pairs);

// Whether parameters and gradients are where the table has them; a null gradient means that there is none. Does not
// read `segments`.
bool are_unmoved(const TensorPairs& pairs);

// A tensor in optimizer.state, and the address of its elements when it was recorded.
struct View {
  AtenTensorHandle tensor;
  void* data;
};

bool are_intact(const View* views, int64_t count);

// Raises autograd's version counters of the parameters, and of the gradients if these are cleared.
void bump_versions(const TensorPairs& pairs, bool of_grads);

}  // namespace radam_fused
