// Pairs of a parameter and its gradient, read by the addresses of their tensors.
#pragma once

#include <vector>

#include "args/step_args.h"

namespace radam_fused {

struct Pairs {
  Described* rows;          // of each the tensor and its number of elements are known
  const int64_t* segments;  // (n, 2), the operator's argument: where the moments start, and their layout
  int64_t count;
  int dtype;
  Device device;
};

// The bytes from a tensor's first element to its last.
struct Bytes {
  const char* begin;
  const char* end;
};

// Whether no two spans meet; sorts them.
bool are_apart(std::vector<Bytes>& spans);

// Fills in the rows, on all threads; false where a parameter has no gradient, a pair is not two arrays in the order
// that the moments were laid out in, or two parameters share memory since they have moved.
bool describe(const Pairs& pairs);

// Whether parameters and gradients lie where the rows say; a row without an address for its gradient says that there is
// none. `segments` is not looked at.
bool lie_in_place(const Pairs& pairs);

// A tensor that optimizer.state shows, and where its elements were.
struct View {
  AtenTensorHandle tensor;
  void* data;
};

bool are_in_place(const View* views, int64_t count);

// Raises the version counters that autograd compares, of parameters and, where they were cleared, of gradients.
void count_versions(const Pairs& pairs, bool of_grads);

// The gradients of described pairs, kept alive while the interpreter runs other threads, which may replace them.
class Held {
 public:
  explicit Held(const Pairs& pairs);
  ~Held();
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  Scratch<AtenTensorHandle> grads_;
};

}  // namespace radam_fused
