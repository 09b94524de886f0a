#include "args/step_args.h"

#include "numerics/radam_update.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

constexpr const char* kFreedParam =
    "the parameter's storage does not hold all of its elements: it was freed or made smaller";
constexpr const char* kFreedGrad =
    "the gradient's storage does not hold all of its elements: it was freed or made smaller";

// What each segment is checked against.
struct Bounds {
  Device device;
  StateFormat format;
  int64_t capacity;  // of the flat buffers, in elements
  int64_t scalar_count;
  int64_t alignment;  // of the segments' starts

  // Whether a segment is within the flat buffers. A start may be anything up to 2^63 - 1, so nothing is added to it.
  bool hold(const Segment& segment) const {
    return segment.start >= 0 && segment.start % alignment == 0 && segment.numel <= capacity &&
           segment.start <= capacity - segment.numel;
  }
  bool has_scalars(const Segment& segment) const {
    return segment.scalar_index >= 0 && segment.scalar_index < scalar_count;
  }
};

// Whether the random numbers of all elements have offsets in [0, 2^63).
bool has_rng_range(const Segment& segment) {
  return segment.rng_offset >= 0 && segment.rng_offset <= INT64_MAX - segment.numel;
}

// Reads a parameter and its gradient; returns what is wrong with them, or null.
const char* read_segment(AtenTensorHandle param, AtenTensorHandle grad, const Bounds& bounds, int64_t hash,
                         Segment& segment, std::unique_ptr<Strides>& strides) {
  if (!is_strided_on(param, bounds.device) || !is_strided_on(grad, bounds.device)) {
    return "not a strided tensor on the device of exp_avg";
  }
  if (dtype_of(param) != bounds.format.param_dtype) return "parameters of a bucket have one dtype";
  segment.grad_dtype = dtype_of(grad);
  if (!supported(bounds.format.param_dtype, segment.grad_dtype)) return "no kernel for these dtypes";
  const Shape shape = shape_of(param);
  const Shape grad_shape = shape_of(grad);
  if (shape.dim != grad_shape.dim || !std::equal(shape.size, shape.size + shape.dim, grad_shape.size)) {
    return "gradient and parameter differ in shape";
  }
  if (layout_hash(shape) != hash) return "shape or strides have changed since the moments were laid out";
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(param, &segment.numel));
  if (!bounds.hold(segment)) return "start out of the buffer, or not a multiple of what its moments need";
  if (!bounds.has_scalars(segment)) return "scalar_index out of range";
  if (!has_rng_range(segment)) return "rng_offset out of the range from 0 to 2^63 - 1 less its elements";
  if (segment.numel == 0) return nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(param, &segment.param));
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(grad, &segment.grad));
  if (segment.param == nullptr || !is_stored(param, shape, item_size(bounds.format.param_dtype))) {
    return kFreedParam;
  }
  if (segment.grad == nullptr || !is_stored(grad, grad_shape, item_size(segment.grad_dtype))) {
    return kFreedGrad;
  }
  if (!(is_contiguous(param) && is_contiguous(grad))) {
    auto needed = std::make_unique<Strides>();
    if (needs_strides(shape, grad_shape, *needed)) {
      if (overlaps_itself(shape)) return "parameter is expanded: several of its elements share memory";
      segment.strides = needed.get();
      segment.overlapping = overlaps_itself(grad_shape);
      strides = std::move(needed);
    }
  }
  return nullptr;
}

// The format of the state of parameters of this dtype; raises where its buffers do not fit each other.
StateFormat format_of(const StepArgs& args, int param_dtype) {
  StateFormat format;
  const bool half = param_dtype == kBFloat16 || param_dtype == kFloat16;
  format.param_dtype = param_dtype;
  format.stochastic = args.stochastic && half;  // other dtypes are not rounded
  const AtenTensorHandle exp_avg = args.exp_avg.get(), exp_avg_sq = args.exp_avg_sq.get();
  const int dtype = dtype_of(exp_avg);
  const bool codes = has_dtype(exp_avg, aoti_torch_dtype_int8()) && has_dtype(exp_avg_sq, aoti_torch_dtype_uint8());
  STD_TORCH_CHECK(codes || (dtype != kUnsupported && dtype == dtype_of(exp_avg_sq)),
                  "exp_avg and exp_avg_sq must both be float32, float64, bfloat16 or float16, or int8 and uint8");
  format.moments = codes                ? MomentFormat::kInt8
                   : dtype == kBFloat16 ? MomentFormat::kBFloat16
                   : dtype == kFloat16  ? MomentFormat::kFloat16
                                        : MomentFormat::kFloat32;
  const bool none = param_dtype == kUnsupported;  // no parameters
  STD_TORCH_CHECK(none || (param_dtype == kFloat64) == (dtype == kFloat64),
                  "radam_fused: no kernel for these dtypes: float64 parameters go with float64 moments, and no others");
  STD_TORCH_CHECK(args.scales.has_value() == codes, "scales belong to int8 moments, and to no others");
  if (!args.master.has_value()) return format;
  const AtenTensorHandle master = args.master->get();
  if (none || (half && dtype_of(master) == kFloat32)) {
    format.master = MasterFormat::kFloat32;
  } else if (param_dtype == kBFloat16 && has_dtype(master, aoti_torch_dtype_int16())) {
    format.master = MasterFormat::kSplit;
  } else {
    STD_TORCH_CHECK(half && dtype_of(master) == param_dtype,
                    "no state format has such a master buffer beside these parameters");
    format.master = MasterFormat::kKahan;
  }
  STD_TORCH_CHECK(!args.stochastic, "stochastic: parameters with a master buffer are rounded to nearest");
  return format;
}

Bounds check_buffers(size_t count, size_t grads, int param_dtype, const StepArgs& args) {
  const Tensor &exp_avg = args.exp_avg, &segments = args.segments, &scalar_index = args.scalar_index;
  const Tensor& scalars = args.scalars;
  Bounds bounds{device_of(exp_avg.get()), format_of(args, param_dtype), exp_avg.numel(), 0, 1};
  const auto flat = [&](const Tensor& buffer, int64_t numel, int64_t dim = 1) {
    return buffer.numel() == numel && buffer.dim() == dim && buffer.is_contiguous() &&
           is_strided_on(buffer.get(), bounds.device);
  };
  const auto apart = [&](const Tensor& a, const Tensor& b) {
    const auto* first = static_cast<const char*>(a.const_data_ptr());
    const auto* second = static_cast<const char*>(b.const_data_ptr());
    return first + a.numel() * a.element_size() <= second || second + b.numel() * b.element_size() <= first;
  };
  STD_TORCH_CHECK(flat(exp_avg, bounds.capacity) && flat(args.exp_avg_sq, bounds.capacity),
                  "exp_avg and exp_avg_sq must be flat buffers of one size, dtype and device");
  if (args.scales.has_value()) {
    bounds.alignment = kBlockElements;
    STD_TORCH_CHECK(bounds.capacity % kBlockElements == 0 && dtype_of(args.scales->get()) == kFloat32 &&
                        flat(*args.scales, 2 * (bounds.capacity / kBlockElements), 2) && args.scales->size(0) == 2,
                    "scales must be contiguous float32 of shape (2, length / 256) on the device of exp_avg");
  }
  STD_TORCH_CHECK(!args.master.has_value() || flat(*args.master, bounds.capacity),
                  "master must be a flat buffer of the size and device of exp_avg");
  const auto stored = [](const std::optional<Tensor>& tensor) { return !tensor || is_stored(*tensor); };
  STD_TORCH_CHECK(is_stored(exp_avg) && is_stored(args.exp_avg_sq) && stored(args.scales) && stored(args.master),
                  "exp_avg, exp_avg_sq, scales or master: ", kFreed);
  STD_TORCH_CHECK(is_stored(segments) && is_stored(scalar_index) && is_stored(scalars) && stored(args.rng_offsets),
                  "segments, scalar_index, scalars or rng_offsets: ", kFreed);
  STD_TORCH_CHECK(apart(exp_avg, args.exp_avg_sq), "exp_avg and exp_avg_sq must not share memory");
  STD_TORCH_CHECK(dtype_of(scalars.get()) == kFloat64 && scalars.dim() == 2 && scalars.size(1) == kScalarColumns &&
                      scalars.is_contiguous() &&
                      (is_on_cpu(scalars.get()) || is_strided_on(scalars.get(), bounds.device)),
                  "scalars must be contiguous float64 of shape (n, 11), on the CPU or the device of exp_avg");
  STD_TORCH_CHECK(grads == count && segments.dim() == 2 && size_t(segments.size(0)) == count && segments.size(1) == 2 &&
                      scalar_index.dim() == 1 && size_t(scalar_index.numel()) == count,
                  "params, grads, segments and scalar_index must have one entry a segment");
  STD_TORCH_CHECK(is_int64(segments.get()) && is_int64(scalar_index.get()) && is_on_cpu(segments.get()) &&
                      is_on_cpu(scalar_index.get()),
                  "segments and scalar_index must be contiguous int64 on the CPU");
  STD_TORCH_CHECK(
      !args.rng_offsets.has_value() || (args.rng_offsets->dim() == 1 && size_t(args.rng_offsets->numel()) == count &&
                                        is_int64(args.rng_offsets->get()) && is_on_cpu(args.rng_offsets->get())),
      "rng_offsets must be contiguous int64 on the CPU, one entry a segment");
  bounds.scalar_count = scalars.size(0);
  return bounds;
}

// What the tables say about each segment.
class SegmentTables {
 public:
  explicit SegmentTables(const StepArgs& args)
      : places_(static_cast<const SegmentPlace*>(args.segments.const_data_ptr())),
        scalar_index_(static_cast<const int64_t*>(args.scalar_index.const_data_ptr())),
        rng_offsets_(args.rng_offsets.has_value() ? static_cast<const int64_t*>(args.rng_offsets->const_data_ptr())
                                                  : nullptr) {}

  void fill(size_t i, Segment& segment) const {
    segment.start = places_[i].start;
    segment.rng_offset = rng_offsets_ != nullptr ? rng_offsets_[i] : segment.start;
    segment.scalar_index = scalar_index_[i];
  }
  int64_t layout_hash(size_t i) const { return places_[i].layout_hash; }

 private:
  const SegmentPlace* places_;
  const int64_t* scalar_index_;
  const int64_t* rng_offsets_;  // null: a segment's random numbers begin at its start
};

Launch begin(const Bounds& bounds, const StepArgs& args) {
  Launch launch;
  launch.format = bounds.format;
  launch.state.exp_avg = static_cast<char*>(args.exp_avg.mutable_data_ptr());
  launch.state.exp_avg_sq = static_cast<char*>(args.exp_avg_sq.mutable_data_ptr());
  if (args.scales.has_value()) {
    launch.state.scales = static_cast<float*>(args.scales->mutable_data_ptr());
    launch.state.sq_scales = launch.state.scales + bounds.capacity / kBlockElements;
  }
  if (args.master.has_value()) launch.state.master = static_cast<char*>(args.master->mutable_data_ptr());
  launch.scalars = static_cast<const double*>(args.scalars.const_data_ptr());
  launch.scalar_count = bounds.scalar_count;
  launch.scalars_on_device = !is_on_cpu(args.scalars.get());
  return launch;
}

// Drops segments without elements, and counts the elements of the others.
void finish(Launch& launch) {
  drop_empty(launch.segments);
  launch.ends.reserve(launch.segments.size());
  int64_t end = 0;
  for (const Segment& segment : launch.segments) launch.ends.push_back(end += segment.numel);
}

template <typename List>
Launch read_lists(const List& params, const List& grads, const StepArgs& args) {
  const size_t count = params.size();
  const int param_dtype = count > 0 ? dtype_of(params[0]) : kUnsupported;
  const Bounds bounds = check_buffers(count, grads.size(), param_dtype, args);
  Launch launch = begin(bounds, args);

  launch.segments.resize(count);
  launch.strides.resize(count);
  const SegmentTables tables(args);
  const auto read = [&](size_t i) {
    Segment& segment = launch.segments[i];
    tables.fill(i, segment);
    return read_segment(params[i], grads[i], bounds, tables.layout_hash(i), segment, launch.strides[i]);
  };
  const auto values = [&](size_t i) {
    const Segment& segment = launch.segments[i];
    return " (start " + std::to_string(segment.start) + " of " + std::to_string(bounds.capacity) + ", scalar_index " +
           std::to_string(segment.scalar_index) + " of " + std::to_string(bounds.scalar_count) + ", rng_offset " +
           std::to_string(segment.rng_offset) + ")";
  };
  read_each("radam_fused::step_native", count, read, values);

  for (size_t i = 0; i < count; ++i) {
    if (launch.segments[i].overlapping) launch.overlapping.push_back(i);
  }
  finish(launch);
  return launch;
}

}  // namespace

Launch read_step_args(const TensorList& params, const TensorList& grads, const StepArgs& args) {
  return read_lists(params, grads, args);
}

Launch read_step_args(const std::vector<AtenTensorHandle>& params, const std::vector<AtenTensorHandle>& grads,
                      const StepArgs& args) {
  return read_lists(params, grads, args);
}

Launch read_step_args(const Tensor& pointer_table, int param_dtype, const StepArgs& args) {
  STD_TORCH_CHECK(pointer_table.dim() == 2 && pointer_table.size(1) == 5 && is_int64(pointer_table.get()) &&
                      is_on_cpu(pointer_table.get()),
                  "pointer_table must be contiguous int64 of shape (n, 5) on the CPU");
  const auto* pairs = static_cast<const TensorPair*>(pointer_table.const_data_ptr());
  const auto count = size_t(pointer_table.size(0));
  const Bounds bounds = check_buffers(count, count, param_dtype, args);
  Launch launch = begin(bounds, args);
  launch.segments.resize(count);
  const SegmentTables tables(args);
  for (size_t i = 0; i < count; ++i) {
    Segment& segment = launch.segments[i];
    segment.param = pairs[i].param;
    segment.grad = pairs[i].grad;
    segment.numel = pairs[i].numel;
    segment.grad_dtype = int(pairs[i].grad_dtype);
    tables.fill(i, segment);
    STD_TORCH_CHECK(supported(param_dtype, segment.grad_dtype) && bounds.hold(segment) && bounds.has_scalars(segment) &&
                        has_rng_range(segment),
                    "radam_fused::step_from_pointers: tensor ", i,
                    ": dtypes, start, scalar_index or rng_offset do not fit");
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
