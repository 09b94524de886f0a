// Copies between strided tensors and contiguous buffers, in words of a dtype's size.
#pragma once

#include "args/segment.h"
#include "numerics/dtypes.h"

namespace radam_fused {

template <typename Word>
void load_strided_words(void* to, const void* from, const Strides& strides, int64_t begin, int64_t n, bool is_grad) {
  StridedCursor at(strides, begin);
  for (int64_t i = 0; i < n; ++i, at.advance()) {
    static_cast<Word*>(to)[i] = static_cast<const Word*>(from)[is_grad ? at.grad() : at.param()];
  }
}

template <typename Word>
void store_strided_words(void* to, const void* from, const Strides& strides, int64_t begin, int64_t n, bool is_grad) {
  StridedCursor at(strides, begin);
  for (int64_t i = 0; i < n; ++i, at.advance()) {
    static_cast<Word*>(to)[is_grad ? at.grad() : at.param()] = static_cast<const Word*>(from)[i];
  }
}

// Copies n elements from position `begin` on, in the order of the moments, of the gradient or of the parameter.
inline void load_strided(int dtype, void* to, const void* from, const Strides& strides, int64_t begin, int64_t n,
                         bool is_grad) {
  const auto move = item_size(dtype) == 8   ? load_strided_words<uint64_t>
                    : item_size(dtype) == 4 ? load_strided_words<uint32_t>
                                            : load_strided_words<uint16_t>;
  move(to, from, strides, begin, n, is_grad);
}

inline void store_strided(int dtype, void* to, const void* from, const Strides& strides, int64_t begin, int64_t n,
                          bool is_grad) {
  const auto move = item_size(dtype) == 8   ? store_strided_words<uint64_t>
                    : item_size(dtype) == 4 ? store_strided_words<uint32_t>
                                            : store_strided_words<uint16_t>;
  move(to, from, strides, begin, n, is_grad);
}

}  // namespace radam_fused
