// Pairs of a parameter and its gradient, read by the addresses of their tensors.
#pragma once

#include <vector>

#include "args/step_args.h"

namespace radam_fused {

struct TensorPairs {
  TensorPair* data;         // of each the tensor and its number of elements are known
  const int64_t* segments;  // (n, 2), the operator's argument: where the moments start, and their layout
  int64_t count;
  int dtype;
  Device device;
};

// The bytes from a tensor's first element to its last.
struct MemorySpan {
  const char* begin;
  const char* end;
};

// Whether no two spans meet; sorts them.
bool are_apart(std::vector<MemorySpan>& spans);

// Fills in the rows, on all threads; false where a parameter has no gradient, a pair is not two arrays in the order
// that the moments were laid out in, or two parameters share memory since they have moved.
bool read_pairs(const TensorPairs& pairs);

// Whether parameters and gradients lie where the rows say; a row without an address for its gradient says that there is
// none. `segments` is not looked at.
bool are_unmoved(const TensorPairs& pairs);

// A tensor that optimizer.state shows, and where its elements were.
struct View {
  AtenTensorHandle tensor;
  void* data;
};

bool are_intact(const View* views, int64_t count);

// Raises the version counters that autograd compares, of parameters and, where they were cleared, of gradients.
void count_versions(const TensorPairs& pairs, bool of_grads);

// The gradients of described pairs, kept alive while the interpreter runs other threads, which may replace them.
class HeldGradients {
 public:
  explicit HeldGradients(const TensorPairs& pairs);
  ~HeldGradients();
  HeldGradients(const HeldGradients&) = delete;
  HeldGradients& operator=(const HeldGradients&) = delete;

 private:
  Scratch<AtenTensorHandle> grads_;
};

}  // namespace radam_fused
