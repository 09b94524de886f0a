// A segment: one parameter's stretch of the flat index space, as a launch sees it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace radam_fused {

// How a parameter and its gradient are laid out against the order of the moments, outermost dimension first.
// Only for segments that cannot be walked as plain arrays; see `plain` below.
struct Strides {
  std::vector<int64_t> size;
  std::vector<int64_t> param;
  std::vector<int64_t> grad;

  // Appends a dimension within the last one, or makes one dimension of both where they run on without a break.
  void add(int64_t inner_size, int64_t param_stride, int64_t grad_stride) {
    if (!size.empty() && param.back() == inner_size * param_stride && grad.back() == inner_size * grad_stride) {
      size.back() *= inner_size;
      param.back() = param_stride;
      grad.back() = grad_stride;
      return;
    }
    size.push_back(inner_size);
    param.push_back(param_stride);
    grad.push_back(grad_stride);
  }
};

struct Segment {
  void* param;
  void* grad;              // written where gradients are to be zero after the step
  int64_t start;           // offset of its moments in the bucket's flat buffers, in elements
  int64_t numel;           // never 0
  int64_t scalar_index;    // its row in the rows table
  int grad_dtype;          // which gradient dtype, in the launcher's own numbering
  const Strides* strides;  // null when parameter, gradient and moments share one dense order
  bool overlapping;        // whether elements of the gradient may share memory
  int64_t rng_offset;      // the place that its first element's random numbers are drawn for
};

struct Shape {
  const int64_t* size;
  const int64_t* stride;
  int64_t dim;
};

// What tells two layouts apart (FNV-1a over sizes and strides); the twin of `fingerprint` in
// radam_fused/numerics/layout.py.
inline int64_t layout_hash(const Shape& shape) {
  uint64_t hash = 14695981039346656037u;
  for (int64_t d = 0; d < shape.dim; ++d) {
    hash = (hash ^ uint64_t(shape.size[d])) * 1099511628211u;
    hash = (hash ^ uint64_t(shape.stride[d])) * 1099511628211u;
  }
  return int64_t(hash);
}

// Dimensions by falling stride, the order in which a dense tensor lies in memory; dimensions of size 1 do not matter.
inline std::vector<int64_t> memory_order(const Shape& shape) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < shape.dim; ++d) {
    if (shape.size[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return shape.stride[a] > shape.stride[b]; });
  return order;
}

inline bool is_dense(const Shape& shape, const std::vector<int64_t>& order) {
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (shape.stride[*d] != expected) return false;
    expected *= shape.size[*d];
  }
  return true;
}

// Whether two elements may share memory: each stride has to reach past the smaller ones.
inline bool overlaps_itself(const Shape& shape) {
  std::vector<int64_t> order = memory_order(shape);
  int64_t reach = 0;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (shape.stride[*d] <= reach) return true;
    reach += (shape.size[*d] - 1) * shape.stride[*d];
  }
  return false;
}

// Fills `strides` and returns false, or returns true when both tensors are plain arrays in one dense order.
// The moments lie in a dense parameter's own order, and in row-major order for any other parameter
// (radam_fused/numerics/layout.py, moment_strides).
inline bool plain(const Shape& param, const Shape& grad, Strides& strides) {
  std::vector<int64_t> order = memory_order(param);
  const bool dense = is_dense(param, order);
  if (!dense) {
    order.resize(param.dim);
    std::iota(order.begin(), order.end(), 0);
  }
  if (dense && is_dense(grad, order)) return true;
  for (const int64_t d : order) strides.add(param.size[d], param.stride[d], grad.stride[d]);
  return false;
}

// The same of a gradient alone, which is walked as it lies in memory if it is dense, and row-major otherwise.
inline bool plain(const Shape& grad, Strides& strides) {
  if (is_dense(grad, memory_order(grad))) return true;
  for (int64_t d = 0; d < grad.dim; ++d) {
    if (grad.size[d] != 1) strides.add(grad.size[d], 0, grad.stride[d]);
  }
  return false;
}

// Walks the elements of a strided segment in the order of its moments.
class StridedCursor {
 public:
  StridedCursor(const Strides& strides, int64_t position) : strides_(strides), index_(strides.size.size()) {
    for (int64_t d = int64_t(index_.size()) - 1; d >= 0; --d) {
      index_[d] = position % strides.size[d];
      position /= strides.size[d];
      param_ += index_[d] * strides.param[d];
      grad_ += index_[d] * strides.grad[d];
    }
  }

  int64_t param() const { return param_; }  // offsets from the tensors' first elements, in elements
  int64_t grad() const { return grad_; }

  void advance() {
    for (int64_t d = int64_t(index_.size()) - 1; d >= 0; --d) {
      param_ += strides_.param[d];
      grad_ += strides_.grad[d];
      if (++index_[d] < strides_.size[d]) return;
      param_ -= strides_.size[d] * strides_.param[d];
      grad_ -= strides_.size[d] * strides_.grad[d];
      index_[d] = 0;
    }
  }

 private:
  const Strides& strides_;
  std::vector<int64_t> index_;
  int64_t param_ = 0;
  int64_t grad_ = 0;
};

}  // namespace radam_fused
