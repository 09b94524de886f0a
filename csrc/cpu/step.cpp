// radam_fused::step_native on the CPU: one pass over a bucket, its segments split evenly over torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <deque>

#include "../update.h"
#include "tensors.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

// Below this many elements a thread is not worth waking (about 30 us of work at 28 bytes an element).
constexpr int64_t kGrain = 16384;
// Strided segments pass through a buffer on the stack, this many elements at a time.
constexpr int64_t kChunk = 512;

struct Launch {
  int param_dtype = kUnsupported;
  std::vector<Segment> segments;
  std::vector<int64_t> ends;    // running count of elements after each segment, padding left out
  std::deque<Strides> strides;  // a deque: segments point into it while it grows
  char* exp_avg = nullptr;
  char* exp_avg_sq = nullptr;
  const double* rows = nullptr;
};

void check_segment(bool fits, size_t index, const char* what) {
  STD_TORCH_CHECK(fits, "radam_fused::step_native: tensor ", index, " of the lists: ", what);
}

// Reads every tensor of the lists before anything is written, so that a bad one leaves all of them as they were.
Launch prepare(const TensorList& params, const TensorList& grads, const Tensor& exp_avg, const Tensor& exp_avg_sq,
               const Tensor& starts, const Tensor& row_of, const Tensor& rows) {
  const int moments = dtype_of(exp_avg.get());
  const int64_t capacity = exp_avg.numel();
  STD_TORCH_CHECK(moments == kFloat32 || moments == kFloat64, "exp_avg must be float32 or float64");
  STD_TORCH_CHECK(dtype_of(exp_avg_sq.get()) == moments && exp_avg_sq.numel() == capacity && exp_avg.is_contiguous() &&
                      exp_avg_sq.is_contiguous(),
                  "exp_avg and exp_avg_sq must be flat buffers of one size and dtype");
  STD_TORCH_CHECK(
      dtype_of(rows.get()) == kFloat64 && rows.dim() == 2 && rows.size(1) == kRowColumns && rows.is_contiguous(),
      "rows must be float64 of shape (rows, 9)");
  const size_t count = params.size();
  STD_TORCH_CHECK(grads.size() == count && size_t(starts.numel()) == count && size_t(row_of.numel()) == count,
                  "params, grads, starts and row_of must have one entry a segment");
  const int64_t* start = static_cast<const int64_t*>(starts.const_data_ptr());
  const int64_t* row = static_cast<const int64_t*>(row_of.const_data_ptr());
  const int64_t row_count = rows.size(0);

  Launch launch;
  launch.segments.reserve(count);
  launch.ends.reserve(count);
  launch.exp_avg = static_cast<char*>(exp_avg.mutable_data_ptr());
  launch.exp_avg_sq = static_cast<char*>(exp_avg_sq.mutable_data_ptr());
  launch.rows = static_cast<const double*>(rows.const_data_ptr());

  int64_t end = 0;
  for (size_t i = 0; i < count; ++i) {
    Segment segment{};
    params.with(i, [&](AtenTensorHandle param) {
      grads.with(i, [&](AtenTensorHandle grad) {
        check_segment(is_strided_cpu(param) && is_strided_cpu(grad), i, "not a strided CPU tensor");
        const int param_dtype = dtype_of(param);
        if (i == 0) launch.param_dtype = param_dtype;
        check_segment(param_dtype == launch.param_dtype, i, "parameters of a bucket have one dtype");
        segment.grad_dtype = dtype_of(grad);
        check_segment(select_kernel(param_dtype, segment.grad_dtype) != nullptr &&
                          (param_dtype == kFloat64) == (moments == kFloat64),
                      i, "no kernel for these dtypes");
        const Shape shape = shape_of(param);
        const Shape grad_shape = shape_of(grad);
        check_segment(shape.dim == grad_shape.dim && std::equal(shape.size, shape.size + shape.dim, grad_shape.size), i,
                      "gradient and parameter differ in shape");
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(param, &segment.numel));
        segment.start = start[i];
        segment.row = row[i];
        check_segment(segment.start >= 0 && segment.start + segment.numel <= capacity, i, "start out of the buffer");
        check_segment(segment.row >= 0 && segment.row < row_count, i, "row out of the table");
        STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(param, &segment.param));
        STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(grad, &segment.grad));
        if (!(is_contiguous(param) && is_contiguous(grad))) {
          Strides strides;
          if (segment.numel > 0 && !plain(shape, grad_shape, strides)) {
            launch.strides.push_back(std::move(strides));
            segment.strides = &launch.strides.back();
          }
        }
      });
    });
    if (segment.numel == 0) continue;
    end += segment.numel;
    launch.segments.push_back(segment);
    launch.ends.push_back(end);
  }
  return launch;
}

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
  const int64_t moment_item = launch.param_dtype == kFloat64 ? 8 : 4;
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

// Elements [begin, end) of the whole launch, counted over all segments without their padding.
void update_range(const Launch& launch, int64_t begin, int64_t end) {
  auto index = size_t(std::upper_bound(launch.ends.begin(), launch.ends.end(), begin) - launch.ends.begin());
  for (int64_t at = begin; at < end; ++index) {
    const Segment& segment = launch.segments[index];
    const int64_t first = launch.ends[index] - segment.numel;
    const int64_t until = std::min(end, launch.ends[index]);
    update_segment(launch, segment, at - first, until - first);
    at = until;
  }
}

void step(StableListHandle params, StableListHandle grads, Tensor exp_avg, Tensor exp_avg_sq, Tensor starts,
          Tensor row_of, Tensor rows) {
  const TensorList param_list(params);
  const TensorList grad_list(grads);
  const Launch launch = prepare(param_list, grad_list, exp_avg, exp_avg_sq, starts, row_of, rows);
  if (launch.segments.empty()) return;
  torch::stable::parallel_for(0, launch.ends.back(), kGrain,
                              [&](int64_t begin, int64_t end) { update_range(launch, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("step_native", TORCH_BOX(&step)); }

}  // namespace radam_fused
