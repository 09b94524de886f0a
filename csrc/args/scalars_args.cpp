#include "args/scalars_args.h"

#include <torch/csrc/stable/ops.h>

namespace radam_fused {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#define RADAM_CHECK(condition, ...) STD_TORCH_CHECK(condition, "radam_fused::scalars_native: ", __VA_ARGS__)

// A table of float64 or int64, of so many columns, or a vector of float32.
bool is_table(const Tensor& tensor, int64_t columns, bool integers) {
  return tensor.dim() == 2 && tensor.size(1) == columns && tensor.is_contiguous() &&
         (integers ? is_int64(tensor.get()) : dtype_of(tensor.get()) == kFloat64);
}

bool is_vector(const Tensor& tensor, int64_t length) {
  return tensor.dim() == 1 && tensor.size(0) == length && tensor.is_contiguous() && dtype_of(tensor.get()) == kFloat32;
}

const float* scalar(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor) return nullptr;
  RADAM_CHECK(dtype_of(tensor->get()) == kFloat32 && tensor->numel() == 1, name, " must be float32 with one element");
  return static_cast<const float*>(tensor->const_data_ptr());
}

void check_sources(const ScalarSource* sources, int64_t count, int64_t groups, int64_t segments) {
  for (int64_t i = 0; i < count; ++i) {
    const auto [group, segment] = sources[i];
    RADAM_CHECK(group >= 0 && group < groups, "sources: row ", i, " names group ", group, " of ", groups);
    RADAM_CHECK(segment >= 0 && segment < segments, "sources: row ", i, " names segment ", segment, " of ", segments);
  }
}

}  // namespace

ScalarsCall read_scalars_args(const ScalarsArgs& args) {
  const Tensor &group_scalars = args.group_scalars, &sources = args.sources, &counted = args.counted;
  const Tensor &steps = args.steps, &taken = args.taken;
  const std::optional<Tensor>&lr = args.lr, &partial_sums = args.partial_sums;
  const std::optional<Tensor>&grad_scale = args.grad_scale, &found_inf = args.found_inf;
  const Device device = device_of(group_scalars.get());
  const auto there = [&](const Tensor& tensor) { return is_strided_on(tensor.get(), device); };
  const auto there_or_none = [&](const std::optional<Tensor>& tensor) { return !tensor || there(*tensor); };
  RADAM_CHECK(there(group_scalars) && there(sources) && there(counted) && there(steps) && there(taken) &&
                  there_or_none(lr) && there_or_none(partial_sums) && there_or_none(grad_scale) &&
                  there_or_none(found_inf),
              "all tensors must be strided and on one device, that of group_scalars");
  const auto stored = [](const std::optional<Tensor>& tensor) { return !tensor || is_stored(*tensor); };
  RADAM_CHECK(is_stored(group_scalars) && is_stored(sources) && is_stored(counted) && is_stored(steps) &&
                  is_stored(taken) && stored(lr) && stored(partial_sums) && stored(grad_scale) && stored(found_inf),
              "a tensor: ", kFreed);
  RADAM_CHECK(is_table(group_scalars, kGroupColumns, /*integers=*/false),
              "group_scalars must be contiguous float64 of shape (groups, 16)");
  RADAM_CHECK(is_table(sources, 2, /*integers=*/true), "sources must be contiguous int64 of shape (n, 2)");
  RADAM_CHECK(is_vector(steps, steps.numel()), "steps must be contiguous float32 of shape (n)");
  RADAM_CHECK(is_vector(counted, steps.numel()), "counted must be contiguous float32 with one element a step count");

  RADAM_CHECK(
      taken.dim() == 1 && taken.size(0) == steps.numel() && taken.is_contiguous() && dtype_of(taken.get()) == kFloat64,
      "taken must be contiguous float64 with one element a step count");

  ScalarsKernelArgs arguments{};
  arguments.groups = static_cast<const GroupScalars*>(group_scalars.const_data_ptr());
  arguments.sources = static_cast<const ScalarSource*>(sources.const_data_ptr());
  arguments.scalar_count = sources.size(0);
  arguments.counted = static_cast<const float*>(counted.const_data_ptr());
  arguments.steps = static_cast<float*>(steps.mutable_data_ptr());
  arguments.taken = static_cast<double*>(taken.mutable_data_ptr());
  arguments.segment_count = steps.numel();
  if (lr) {
    const int dtype = dtype_of(lr->get());
    RADAM_CHECK(lr->dim() == 1 && lr->size(0) == group_scalars.size(0) && (dtype == kFloat32 || dtype == kFloat64),
                "lr must be float32 or float64 with one element a group");
    arguments.lr = lr->const_data_ptr();
    arguments.lr_stride = lr->stride(0);
    arguments.lr_is_double = dtype == kFloat64;
  }
  if (partial_sums) {
    RADAM_CHECK(is_table(*partial_sums, kPartialSums, /*integers=*/false),
                "partial_sums must be contiguous float64 of shape (k, 1024)");
    arguments.partial_sums = static_cast<const double*>(partial_sums->const_data_ptr());
    arguments.bucket_count = partial_sums->size(0);
  }
  arguments.max_grad_norm = args.max_grad_norm;
  arguments.grad_scale = scalar(grad_scale, "grad_scale");
  arguments.found_inf = scalar(found_inf, "found_inf");
  const bool on_cpu = is_on_cpu(group_scalars.get());
  if (on_cpu) check_sources(arguments.sources, arguments.scalar_count, group_scalars.size(0), steps.numel());

  const torch::stable::Device where =
      on_cpu ? torch::stable::Device(DeviceType::CPU) : torch::stable::Device(DeviceType::CUDA, device.index);
  const int64_t shape[] = {arguments.scalar_count, kScalarColumns};
  Tensor scalars = torch::stable::empty({shape, size_t(2)}, ScalarType::Double, std::nullopt, where);
  Tensor norm = torch::stable::empty({shape, size_t(0)}, ScalarType::Double, std::nullopt, where);
  arguments.scalars = static_cast<double*>(scalars.mutable_data_ptr());
  arguments.norm = static_cast<double*>(norm.mutable_data_ptr());
  return {arguments, device, scalars, norm};
}

}  // namespace radam_fused
