#include "launch.h"

#include "update.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

// What each segment is held against.
struct Bounds {
  Device device;
  int param_dtype;
  int moment_dtype;
  int64_t capacity;
  int64_t rows;
};

// Reads one pair of tensors; returns what is wrong with it, or null.
const char* read_segment(AtenTensorHandle param, AtenTensorHandle grad, const Bounds& bounds, int64_t layout,
                         Segment& segment, std::unique_ptr<Strides>& strides) {
  if (!is_strided_on(param, bounds.device) || !is_strided_on(grad, bounds.device)) {
    return "not a strided tensor on the device of exp_avg";
  }
  if (dtype_of(param) != bounds.param_dtype) return "parameters of a bucket have one dtype";
  segment.grad_dtype = dtype_of(grad);
  if (!supported(bounds.param_dtype, segment.grad_dtype) || moment_dtype(bounds.param_dtype) != bounds.moment_dtype) {
    return "no kernel for these dtypes";
  }
  const Shape shape = shape_of(param);
  const Shape grad_shape = shape_of(grad);
  if (shape.dim != grad_shape.dim || !std::equal(shape.size, shape.size + shape.dim, grad_shape.size)) {
    return "gradient and parameter differ in shape";
  }
  if (fingerprint(shape) != layout) return "shape or strides have changed since the moments were laid out";
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(param, &segment.numel));
  if (segment.start < 0 || segment.start + segment.numel > bounds.capacity) return "start out of the buffer";
  if (segment.row < 0 || segment.row >= bounds.rows) return "row out of the table";
  if (segment.numel == 0) return nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(param, &segment.param));
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(grad, &segment.grad));
  if (!(is_contiguous(param) && is_contiguous(grad))) {
    auto walk = std::make_unique<Strides>();
    if (!plain(shape, grad_shape, *walk)) {
      segment.strides = walk.get();
      segment.overlapping = overlaps_itself(grad_shape);
      strides = std::move(walk);
    }
  }
  return nullptr;
}

Bounds check_buffers(size_t count, size_t grads, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                     const Tensor& segments, const Tensor& row_of, const Tensor& rows) {
  Bounds bounds{device_of(exp_avg.get()), kUnsupported, dtype_of(exp_avg.get()), exp_avg.numel(), 0};
  STD_TORCH_CHECK(bounds.moment_dtype == kFloat32 || bounds.moment_dtype == kFloat64,
                  "exp_avg must be float32 or float64");
  STD_TORCH_CHECK(dtype_of(exp_avg_sq.get()) == bounds.moment_dtype && exp_avg_sq.numel() == bounds.capacity &&
                      exp_avg.is_contiguous() && exp_avg_sq.is_contiguous() &&
                      is_strided_on(exp_avg_sq.get(), bounds.device),
                  "exp_avg and exp_avg_sq must be flat buffers of one size, dtype and device");
  STD_TORCH_CHECK(dtype_of(rows.get()) == kFloat64 && rows.dim() == 2 && rows.size(1) == kRowColumns &&
                      rows.is_contiguous() && (is_on_cpu(rows.get()) || is_strided_on(rows.get(), bounds.device)),
                  "rows must be contiguous float64 of shape (rows, 9), on the CPU or the device of exp_avg");
  STD_TORCH_CHECK(grads == count && segments.dim() == 2 && size_t(segments.size(0)) == count && segments.size(1) == 2 &&
                      size_t(row_of.numel()) == count,
                  "params, grads, segments and row_of must have one entry a segment");
  STD_TORCH_CHECK(
      is_int64(segments.get()) && is_int64(row_of.get()) && is_on_cpu(segments.get()) && is_on_cpu(row_of.get()),
      "segments and row_of must be contiguous int64 on the CPU");
  bounds.rows = rows.size(0);
  return bounds;
}

Launch begin(const Bounds& bounds, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& rows) {
  Launch launch;
  launch.param_dtype = bounds.param_dtype;
  launch.exp_avg = static_cast<char*>(exp_avg.mutable_data_ptr());
  launch.exp_avg_sq = static_cast<char*>(exp_avg_sq.mutable_data_ptr());
  launch.rows = static_cast<const double*>(rows.const_data_ptr());
  launch.row_count = bounds.rows;
  launch.rows_on_device = !is_on_cpu(rows.get());
  return launch;
}

// Leaves out what is empty, and counts the elements.
void finish(Launch& launch) {
  auto empty = [](const Segment& segment) { return segment.numel == 0; };
  launch.segments.erase(std::remove_if(launch.segments.begin(), launch.segments.end(), empty), launch.segments.end());
  launch.ends.reserve(launch.segments.size());
  int64_t end = 0;
  for (const Segment& segment : launch.segments) launch.ends.push_back(end += segment.numel);
}

}  // namespace

Launch prepare(const TensorList& params, const TensorList& grads, const Tensor& exp_avg, const Tensor& exp_avg_sq,
               const Tensor& segments, const Tensor& row_of, const Tensor& rows) {
  const size_t count = params.size();
  Bounds bounds = check_buffers(count, grads.size(), exp_avg, exp_avg_sq, segments, row_of, rows);
  if (count > 0) bounds.param_dtype = dtype_of(params[0]);
  Launch launch = begin(bounds, exp_avg, exp_avg_sq, rows);

  launch.segments.resize(count);
  launch.strides.resize(count);
  const int64_t* start_and_layout = static_cast<const int64_t*>(segments.const_data_ptr());
  const int64_t* row = static_cast<const int64_t*>(row_of.const_data_ptr());
  read_each("radam_fused::step_native", count, [&](size_t i) {
    Segment& segment = launch.segments[i];
    segment.start = start_and_layout[2 * i];
    segment.row = row[i];
    return read_segment(params[i], grads[i], bounds, start_and_layout[2 * i + 1], segment, launch.strides[i]);
  });

  for (size_t i = 0; i < count; ++i) {
    if (launch.segments[i].overlapping) launch.overlapping.push_back(i);
  }
  finish(launch);
  return launch;
}

Launch prepare_described(const Tensor& described, int param_dtype, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const Tensor& segments, const Tensor& row_of, const Tensor& rows) {
  STD_TORCH_CHECK(
      described.dim() == 2 && described.size(1) == 4 && is_int64(described.get()) && is_on_cpu(described.get()),
      "described must be contiguous int64 of shape (n, 4) on the CPU");
  const auto count = size_t(described.size(0));
  Bounds bounds = check_buffers(count, count, exp_avg, exp_avg_sq, segments, row_of, rows);
  bounds.param_dtype = param_dtype;
  Launch launch = begin(bounds, exp_avg, exp_avg_sq, rows);
  launch.segments.resize(count);
  const auto* pairs = static_cast<const Described*>(described.const_data_ptr());
  const auto* start_and_layout = static_cast<const int64_t*>(segments.const_data_ptr());
  const auto* row = static_cast<const int64_t*>(row_of.const_data_ptr());
  for (size_t i = 0; i < count; ++i) {
    Segment& segment = launch.segments[i];
    segment.param = pairs[i].param;
    segment.grad = pairs[i].grad;
    segment.numel = pairs[i].numel;
    segment.grad_dtype = int(pairs[i].grad_dtype);
    segment.start = start_and_layout[2 * i];
    segment.row = row[i];
    STD_TORCH_CHECK(supported(param_dtype, segment.grad_dtype) && moment_dtype(param_dtype) == bounds.moment_dtype &&
                        segment.start >= 0 && segment.start + segment.numel <= bounds.capacity && segment.row >= 0 &&
                        segment.row < bounds.rows,
                    "radam_fused::step_described: tensor ", i, ": dtypes, start or row do not fit");
  }
  finish(launch);
  return launch;
}

void clear_overlapping(const TensorList& grads, const Launch& launch) {
  for (const size_t index : launch.overlapping) {
    StableIValue stack[] = {torch::stable::detail::from(borrowed(grads[index]))};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", stack, TORCH_ABI_VERSION));
    Tensor grad = torch::stable::detail::to<Tensor>(stack[0]);
    torch::stable::zero_(grad);
  }
}

}  // namespace radam_fused
