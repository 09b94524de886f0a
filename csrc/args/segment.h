// A segment: one parameter's range of the flat index space of a bucket.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace radam_fused {

// The strides of a parameter and its gradient in the order of the moments, outermost dimension first, where the three
// are not plain arrays in one order (`needs_strides` below).
struct Strides {
  std::vector<int64_t> size;
  std::vector<int64_t> param;
  std::vector<int64_t> grad;

  // Adds a dimension inside the last one, or merges the two where they are contiguous.
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
  void* grad;              // written too, if gradients are to be zero after the step
  int64_t start;           // offset of its moments in the bucket's flat buffers, in elements
  int64_t numel;           // never 0
  int64_t scalar_index;    // index of its row in the scalars
  int grad_dtype;          // a Dtype
  const Strides* strides;  // null when parameter, gradient and moments share one dense order
  bool overlapping;        // whether elements of the gradient may share memory
  int64_t rng_offset;      // the offset of its first element's random numbers
};

// Removes the segments that have no elements.
template <typename Segments>
void drop_empty(Segments& segments) {
  const auto empty = [](const Segment& segment) { return segment.numel == 0; };
  segments.erase(std::remove_if(segments.begin(), segments.end(), empty), segments.end());
}

struct Shape {
  const int64_t* size;
  const int64_t* stride;
  int64_t dim;
};

// FNV-1a over sizes and strides. Must match radam_fused/numerics/layout.py bit for bit.
inline int64_t layout_hash(const Shape& shape) {
  uint64_t hash = 14695981039346656037u;
  for (int64_t d = 0; d < shape.dim; ++d) {
    hash = (hash ^ uint64_t(shape.size[d])) * 1099511628211u;
    hash = (hash ^ uint64_t(shape.stride[d])) * 1099511628211u;
  }
  return int64_t(hash);
}

// Dimensions by falling stride, which is the order of a dense tensor's memory; without dimensions of size 1.
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

// Whether a kernel needs strides to find the elements, which it then writes to `strides`; otherwise parameter, gradient
// and moments are plain arrays in one dense order. Moments are in the order of a dense parameter, and row-major beside
// any other (radam_fused/numerics/layout.py, moment_strides).
inline bool needs_strides(const Shape& param, const Shape& grad, Strides& strides) {
  std::vector<int64_t> order = memory_order(param);
  const bool dense = is_dense(param, order);
  if (!dense) {
    order.resize(param.dim);
    std::iota(order.begin(), order.end(), 0);
  }
  if (dense && is_dense(grad, order)) return false;
  for (const int64_t d : order) strides.add(param.size[d], param.stride[d], grad.stride[d]);
  return true;
}

// The same for a gradient alone: a dense one is read in the order of its memory, any other row-major.
inline bool needs_strides(const Shape& grad, Strides& strides) {
  if (is_dense(grad, memory_order(grad))) return false;
  for (int64_t d = 0; d < grad.dim; ++d) {
    if (grad.size[d] != 1) strides.add(grad.size[d], 0, grad.stride[d]);
  }
  return true;
}

// Steps through the elements of a strided segment in the order of its moments.
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
