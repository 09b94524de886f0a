// radam_fused::step_native on the CPU: one pass over a bucket, its segments split evenly over torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../launch.h"
#include "../update.h"
#include "kernels.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

// Below this many elements a thread is not worth waking (about 30 us of work at 28 bytes an element).
constexpr int64_t kGrain = 16384;
// How many segments before its turn a segment is asked for.
constexpr size_t kSegmentsAhead = 4;
// Strided segments pass through a buffer on the stack, this many elements at a time.
constexpr int64_t kChunk = 512;

template <typename Word>
void gather(void* to, const void* from, const Strides& strides, int64_t begin, int64_t n, bool is_grad) {
  StridedCursor at(strides, begin);
  for (int64_t i = 0; i < n; ++i, at.advance()) {
    static_cast<Word*>(to)[i] = static_cast<const Word*>(from)[is_grad ? at.grad() : at.param()];
  }
}

template <typename Word>
void scatter(void* to, const void* from, const Strides& strides, int64_t begin, int64_t n) {
  StridedCursor at(strides, begin);
  for (int64_t i = 0; i < n; ++i, at.advance()) static_cast<Word*>(to)[at.param()] = static_cast<const Word*>(from)[i];
}

// Copies move words of a dtype's size, whatever its meaning.
void gather(int dtype, void* to, const void* from, const Strides& strides, int64_t begin, int64_t n, bool is_grad) {
  const auto move = item_size(dtype) == 8   ? gather<uint64_t>
                    : item_size(dtype) == 4 ? gather<uint32_t>
                                            : gather<uint16_t>;
  move(to, from, strides, begin, n, is_grad);
}

void scatter(int dtype, void* to, const void* from, const Strides& strides, int64_t begin, int64_t n) {
  const auto move = item_size(dtype) == 8   ? scatter<uint64_t>
                    : item_size(dtype) == 4 ? scatter<uint32_t>
                                            : scatter<uint16_t>;
  move(to, from, strides, begin, n);
}

// Elements [begin, end) of one segment.
void update_segment(const Launch& launch, const Segment& segment, int64_t begin, int64_t end) {
  const SpanKernel kernel = select_kernel(launch.param_dtype, segment.grad_dtype);
  const int64_t param_item = item_size(launch.param_dtype);
  const int64_t grad_item = item_size(segment.grad_dtype);
  const int64_t moment_item = item_size(moment_dtype(launch.param_dtype));
  const double* row = launch.rows + segment.row * kRowColumns;
  char* exp_avg = launch.exp_avg + segment.start * moment_item;
  char* exp_avg_sq = launch.exp_avg_sq + segment.start * moment_item;
  if (segment.strides == nullptr) {
    kernel(static_cast<char*>(segment.param) + begin * param_item,
           static_cast<const char*>(segment.grad) + begin * grad_item, exp_avg + begin * moment_item,
           exp_avg_sq + begin * moment_item, end - begin, row);
    return;
  }
  alignas(64) char param[kChunk * 8];
  alignas(64) char grad[kChunk * 8];
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = std::min(kChunk, end - at);
    gather(launch.param_dtype, param, segment.param, *segment.strides, at, n, /*is_grad=*/false);
    gather(segment.grad_dtype, grad, segment.grad, *segment.strides, at, n, /*is_grad=*/true);
    kernel(param, grad, exp_avg + at * moment_item, exp_avg_sq + at * moment_item, n, row);
    scatter(launch.param_dtype, segment.param, param, *segment.strides, at, n);
  }
}

// Asks for the first lines of a segment ahead of its turn: short segments lie scattered, where no hardware prefetcher
// sees a stream, and each would begin with a cache miss for every array.
void prefetch(const Launch& launch, const Segment& segment) {
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kAhead = 256;  // bytes; longer segments become streams
  const int64_t moment_item = launch.param_dtype == kFloat64 ? 8 : 4;
  const auto touch = [](const void* address, int64_t bytes) {
    for (int64_t at = 0; at < std::min(bytes, kAhead); at += kLine) {
      __builtin_prefetch(static_cast<const char*>(address) + at);
    }
  };
  touch(segment.param, segment.numel * item_size(launch.param_dtype));
  touch(segment.grad, segment.numel * item_size(segment.grad_dtype));
  touch(launch.exp_avg + segment.start * moment_item, segment.numel * moment_item);
  touch(launch.exp_avg_sq + segment.start * moment_item, segment.numel * moment_item);
}

// Elements [begin, end) of the whole launch, counted over all segments without their padding.
void update_range(const Launch& launch, int64_t begin, int64_t end) {
  auto index = size_t(std::upper_bound(launch.ends.begin(), launch.ends.end(), begin) - launch.ends.begin());
  for (int64_t at = begin; at < end; ++index) {
    const Segment& segment = launch.segments[index];
    if (index + kSegmentsAhead < launch.segments.size()) prefetch(launch, launch.segments[index + kSegmentsAhead]);
    const int64_t first = launch.ends[index] - segment.numel;
    const int64_t until = std::min(end, launch.ends[index]);
    update_segment(launch, segment, at - first, until - first);
    at = until;
  }
}

void step(StableListHandle params, StableListHandle grads, Tensor exp_avg, Tensor exp_avg_sq, Tensor segments,
          Tensor row_of, Tensor rows) {
  const TensorList param_list(params);
  const TensorList grad_list(grads);
  const Launch launch = prepare(param_list, grad_list, exp_avg, exp_avg_sq, segments, row_of, rows);
  if (launch.segments.empty()) return;
  torch::stable::parallel_for(0, launch.ends.back(), kGrain,
                              [&](int64_t begin, int64_t end) { update_range(launch, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("step_native", TORCH_BOX(&step)); }

}  // namespace radam_fused
