// radam_fused::step_native on the CPU: one pass over a bucket, whose elements are divided evenly among torch's threads.
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

// Below this number of elements another thread does not pay (about 30 us of work at 28 bytes per element).
constexpr int64_t kGrain = 16384;
// How many segments ahead of its turn a segment is prefetched.
constexpr size_t kSegmentsAhead = 4;
// Strided segments are copied through a buffer on the stack, this many elements at a time.
constexpr int64_t kChunk = 512;
// How many elements are updated before their gradients are cleared, while these are in the first-level cache.
constexpr int64_t kCleared = 2048;

// What a segment needs: usually the same for its neighbours. Computing it again would cost more than updating a short
// segment.
struct SegmentTask {
  StepKernel kernel;
  LowPrecisionKernel low_precision;  // used instead of `kernel` for low-precision state
  const double* scalars;
  StepScalars<float> scalars_f32;  // as `kernel` takes them, in one of two dtypes
  StepScalars<double> scalars_f64;
  bool skip;   // leave parameters and moments alone
  bool clear;  // set the gradient to zero
  int64_t grad_item;
  int64_t moment_item;
};

// Updates elements [begin, end) of a segment. Plain arrays are updated in place, strided ones through buffers.
void update_segment(const Launch& launch, const Segment& segment, const SegmentTask& task, int64_t begin, int64_t end) {
  alignas(64) char param_buffer[kChunk * 8];
  alignas(64) char grad_buffer[kChunk * 8];
  const int param_dtype = launch.format.param_dtype;
  const Strides* strides = segment.strides;
  const int64_t chunk = strides != nullptr ? kChunk : task.clear ? kCleared : end - begin;
  for (int64_t at = begin; at < end; at += chunk) {
    const int64_t n = std::min(chunk, end - at);
    char* param = param_buffer;
    char* grad = grad_buffer;
    if (strides == nullptr) {
      param = static_cast<char*>(segment.param) + at * item_size(param_dtype);
      grad = static_cast<char*>(segment.grad) + at * task.grad_item;
    }
    if (!task.skip) {
      if (strides != nullptr) {
        load_strided(param_dtype, param, segment.param, *strides, at, n, /*is_grad=*/false);
        load_strided(segment.grad_dtype, grad, segment.grad, *strides, at, n, /*is_grad=*/true);
      }
      if (task.low_precision != nullptr) {
        task.low_precision(param, grad, segment.grad_dtype, launch.format, launch.state, segment.start + at,
                           segment.rng_offset + at, n, task.scalars);
      } else {
        const bool wide = param_dtype == kFloat64;
        const int64_t moment = (segment.start + at) * task.moment_item;
        task.kernel(param, grad, launch.state.exp_avg + moment, launch.state.exp_avg_sq + moment, n,
                    wide ? static_cast<const void*>(&task.scalars_f64) : &task.scalars_f32);
      }
      if (strides != nullptr) {
        store_strided(param_dtype, segment.param, param, *strides, at, n, /*is_grad=*/false);
      }
    }
    if (task.clear) {
      std::memset(grad, 0, n * task.grad_item);
      if (strides != nullptr) {
        store_strided(segment.grad_dtype, segment.grad, grad, *strides, at, n, /*is_grad=*/true);
      }
    }
  }
}

SegmentTask task_for(const Launch& launch, const Segment& segment, bool zero_grads) {
  SegmentTask task;
  task.scalars = launch.scalars + segment.scalar_index * kScalarColumns;
  task.scalars_f32 = StepScalars<float>::from(task.scalars);
  task.scalars_f64 = StepScalars<double>::from(task.scalars);
  task.skip = task.scalars_f64.update_rule == UpdateRule::kSkipStep;
  task.clear = zero_grads && !segment.overlapping;
  task.kernel = select_step_kernel(launch.format.param_dtype, segment.grad_dtype,
                                   launch.format.param_dtype == kFloat64 ? UpdateBranches::of(task.scalars_f64)
                                                                         : UpdateBranches::of(task.scalars_f32));
  task.low_precision = launch.format.is_full_precision() ? nullptr : select_low_precision_kernel();
  task.grad_item = item_size(segment.grad_dtype);
  task.moment_item = launch.format.moment_item();
  return task;
}

// Whether two segments need the same.
bool same_task(const Segment& a, const Segment& b) {
  return a.scalar_index == b.scalar_index && a.grad_dtype == b.grad_dtype && a.overlapping == b.overlapping;
}

// Prefetches the beginning of a segment: the arrays of short segments are scattered in memory, where the hardware
// prefetchers see no stream, and each array would begin with a cache miss.
void prefetch(const Launch& launch, const Segment& segment) {
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kAhead = 256;  // bytes; the hardware prefetches the rest
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

// The next block boundary of a segment at or after `at`: a quantization block belongs to one thread.
int64_t whole_blocks(int64_t at, int64_t numel) {
  return std::min(numel, (at + kBlockElements - 1) / kBlockElements * kBlockElements);
}

// Updates elements [begin, end) of the launch, counted over all segments without padding.
void update_range(const Launch& launch, bool zero_grads, int64_t begin, int64_t end) {
  auto index = size_t(std::upper_bound(launch.ends.begin(), launch.ends.end(), begin) - launch.ends.begin());
  const Segment* task_segment = &launch.segments[index];
  SegmentTask task = task_for(launch, *task_segment, zero_grads);
  for (int64_t at = begin; at < end; ++index) {
    const Segment& segment = launch.segments[index];
    if (index + kSegmentsAhead < launch.segments.size()) prefetch(launch, launch.segments[index + kSegmentsAhead]);
    if (!same_task(segment, *task_segment)) task = task_for(launch, *(task_segment = &segment), zero_grads);
    const int64_t first = launch.ends[index] - segment.numel;
    const int64_t until = std::min(end, launch.ends[index]);
    if (!task.skip || task.clear) {
      update_segment(launch, segment, task, whole_blocks(at - first, segment.numel),
                     whole_blocks(until - first, segment.numel));
    }
    at = until;
  }
}

void run(const Launch& launch, const StepArgs& args) { run_step(launch, args.zero_grads); }

}  // namespace

void run_step(const Launch& launch, bool zero_grads) {
  if (launch.segments.empty()) return;
  // The overhead of a segment, in elements.
  constexpr int64_t kSegmentCost = 256;
  const int64_t elements = launch.ends.back();
  const int64_t cost = elements + kSegmentCost * int64_t(launch.segments.size());
  const int64_t grain = std::max<int64_t>(1, int64_t(double(kGrain) * double(elements) / double(cost)));
  torch::stable::parallel_for(0, elements, grain,
                              [&](int64_t begin, int64_t end) { update_range(launch, zero_grads, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("step_native", TORCH_BOX(&step_operator<run>)); }

}  // namespace radam_fused
