// radam_fused::step_native on the CPU: one pass over a bucket, its segments split evenly over torch's threads.
#include "cpu/step.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/low_precision_kernel.h"
#include "cpu/step_kernel.h"
#include "cpu/strided_copy.h"
#include "numerics/radam_update.h"

namespace radam_fused {
namespace {

// Below this many elements a thread is not worth waking (about 30 us of work at 28 bytes an element).
constexpr int64_t kGrain = 16384;
// How many segments before its turn a segment is asked for.
constexpr size_t kSegmentsAhead = 4;
// Strided segments pass through a buffer on the stack, this many elements at a time.
constexpr int64_t kChunk = 512;
// How many elements of a gradient are cleared at a time, while they are in the first cache after their update.
constexpr int64_t kCleared = 2048;

// What is to be done to a segment. All of it but the last two is the same for neighbours of one row, most often, and
// would cost a short segment more than its elements do.
struct Pass {
  StepKernel kernel;
  LowPrecisionKernel low_precision;  // in its place, where the state is not stored plainly
  const double* scalars;
  StepScalars<float> single;  // the row as `kernel` takes it, in one of two dtypes
  StepScalars<double> wide;
  bool skip;   // the row says so
  bool clear;  // the gradient is zero afterwards
  int64_t grad_item;
  int64_t moment_item;
  char* exp_avg;  // of the segment's first element
  char* exp_avg_sq;
};

// Updates n elements from the one at place `at` of a segment on.
void update(const Launch& launch, const Segment& segment, const Pass& pass, void* param, const void* grad, int64_t at,
            int64_t n) {
  if (pass.low_precision != nullptr) {
    pass.low_precision(param, grad, segment.grad_dtype, launch.format, launch.state, segment.start + at,
                       segment.rng_offset + at, n, pass.scalars);
  } else {
    const bool wide = launch.format.param_dtype == kFloat64;
    pass.kernel(param, grad, pass.exp_avg + at * pass.moment_item, pass.exp_avg_sq + at * pass.moment_item, n,
                wide ? static_cast<const void*>(&pass.wide) : &pass.single);
  }
}

// Elements [begin, end) of one segment, of which parameter, gradient and moments are plain arrays.
void update_plain(const Launch& launch, const Segment& segment, const Pass& pass, int64_t begin, int64_t end) {
  char* grad = static_cast<char*>(segment.grad);
  const int64_t chunk = pass.clear ? kCleared : end - begin;
  for (int64_t at = begin; at < end; at += chunk) {
    const int64_t n = std::min(chunk, end - at);
    if (!pass.skip) {
      update(launch, segment, pass, static_cast<char*>(segment.param) + at * item_size(launch.format.param_dtype),
             grad + at * pass.grad_item, at, n);
    }
    if (pass.clear) std::memset(grad + at * pass.grad_item, 0, n * pass.grad_item);
  }
}

// The same of a segment whose elements are found by strides.
void update_strided(const Launch& launch, const Segment& segment, const Pass& pass, int64_t begin, int64_t end) {
  alignas(64) char param[kChunk * 8];
  alignas(64) char grad[kChunk * 8];
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = std::min(kChunk, end - at);
    if (!pass.skip) {
      load_strided(launch.format.param_dtype, param, segment.param, *segment.strides, at, n, /*is_grad=*/false);
      load_strided(segment.grad_dtype, grad, segment.grad, *segment.strides, at, n, /*is_grad=*/true);
      update(launch, segment, pass, param, grad, at, n);
      store_strided(launch.format.param_dtype, segment.param, param, *segment.strides, at, n, /*is_grad=*/false);
    }
    if (pass.clear) {
      std::memset(grad, 0, n * pass.grad_item);
      store_strided(segment.grad_dtype, segment.grad, grad, *segment.strides, at, n, /*is_grad=*/true);
    }
  }
}

Pass pass_for(const Launch& launch, const Segment& segment, bool zero_grads) {
  Pass pass;
  pass.scalars = launch.scalars + segment.scalar_index * kScalarColumns;
  pass.single = StepScalars<float>::from(pass.scalars);
  pass.wide = StepScalars<double>::from(pass.scalars);
  pass.skip = pass.wide.update_rule == UpdateRule::kSkipStep;
  pass.clear = zero_grads && !segment.overlapping;
  pass.kernel = select_step_kernel(launch.format.param_dtype, segment.grad_dtype);
  pass.low_precision = launch.format.is_full_precision() ? nullptr : select_low_precision_kernel();
  pass.grad_item = item_size(segment.grad_dtype);
  pass.moment_item = launch.format.moment_item();
  return pass;
}

// Whether the pass of one segment is that of another too, but for where its moments are.
bool alike(const Segment& a, const Segment& b) {
  return a.scalar_index == b.scalar_index && a.grad_dtype == b.grad_dtype && a.overlapping == b.overlapping;
}

void update_segment(const Launch& launch, const Segment& segment, Pass& pass, int64_t begin, int64_t end) {
  if (pass.skip && !pass.clear) return;
  pass.exp_avg = launch.state.exp_avg + segment.start * pass.moment_item;
  pass.exp_avg_sq = launch.state.exp_avg_sq + segment.start * pass.moment_item;
  (segment.strides == nullptr ? update_plain : update_strided)(launch, segment, pass, begin, end);
}

// Asks for the first lines of a segment ahead of its turn: short segments lie scattered, where no hardware prefetcher
// sees a stream, and each would begin with a cache miss for every array.
void prefetch(const Launch& launch, const Segment& segment) {
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kAhead = 256;  // bytes; longer segments become streams
  const int64_t moment_item = launch.format.moment_item();
  const auto touch = [](const void* address, int64_t bytes) {
    for (int64_t at = 0; at < std::min(bytes, kAhead); at += kLine) {
      __builtin_prefetch(static_cast<const char*>(address) + at);
    }
  };
  touch(segment.param, segment.numel * item_size(launch.format.param_dtype));
  touch(segment.grad, segment.numel * item_size(segment.grad_dtype));
  touch(launch.state.exp_avg + segment.start * moment_item, segment.numel * moment_item);
  touch(launch.state.exp_avg_sq + segment.start * moment_item, segment.numel * moment_item);
}

// Where within a segment a range that begins or ends at `at` does: between blocks, so that one is one thread's.
int64_t whole_blocks(int64_t at, int64_t numel) {
  return std::min(numel, (at + kBlockElements - 1) / kBlockElements * kBlockElements);
}

// Elements [begin, end) of the whole launch, counted over all segments without their padding.
void update_range(const Launch& launch, bool zero_grads, int64_t begin, int64_t end) {
  auto index = size_t(std::upper_bound(launch.ends.begin(), launch.ends.end(), begin) - launch.ends.begin());
  const Segment* passed = &launch.segments[index];
  Pass pass = pass_for(launch, *passed, zero_grads);
  for (int64_t at = begin; at < end; ++index) {
    const Segment& segment = launch.segments[index];
    if (index + kSegmentsAhead < launch.segments.size()) prefetch(launch, launch.segments[index + kSegmentsAhead]);
    if (!alike(segment, *passed)) pass = pass_for(launch, *(passed = &segment), zero_grads);
    const int64_t first = launch.ends[index] - segment.numel;
    const int64_t until = std::min(end, launch.ends[index]);
    update_segment(launch, segment, pass, whole_blocks(at - first, segment.numel),
                   whole_blocks(until - first, segment.numel));
    at = until;
  }
}

void run(const Launch& launch, const StepArgs& args) { run_step(launch, args.zero_grads); }

}  // namespace

void run_step(const Launch& launch, bool zero_grads) {
  if (launch.segments.empty()) return;
  // A short segment costs more than its elements: as much as these many.
  constexpr int64_t kSegmentCost = 256;
  const int64_t elements = launch.ends.back();
  const int64_t cost = elements + kSegmentCost * int64_t(launch.segments.size());
  const int64_t grain = std::max<int64_t>(1, int64_t(double(kGrain) * double(elements) / double(cost)));
  torch::stable::parallel_for(0, elements, grain,
                              [&](int64_t begin, int64_t end) { update_range(launch, zero_grads, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("step_native", TORCH_BOX(&step_operator<run>)); }

}  // namespace radam_fused
