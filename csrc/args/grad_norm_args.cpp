#include "args/grad_norm_args.h"

namespace radam_fused {
namespace {

const char* read_gradient(AtenTensorHandle grad, int dtype, const Device& device, Segment& segment,
                          std::unique_ptr<Strides>& strides) {
  if (!is_strided_on(grad, device)) return "not a strided tensor on the device of the first";
  segment.grad_dtype = dtype_of(grad);
  if (segment.grad_dtype == kUnsupported) return "must be float32, float64, float16 or bfloat16";
  if (segment.grad_dtype != dtype) return "all gradients must have the same dtype";
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(grad, &segment.numel));
  if (segment.numel == 0) return nullptr;
  const void* data;  // read-only access, so a copy-on-write tensor is not copied
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(grad, &data));
  segment.grad = const_cast<void*>(data);
  const Shape shape = shape_of(grad);
  if (segment.grad == nullptr || !is_stored(grad, shape, item_size(dtype))) return kFreed;
  if (is_contiguous(grad)) return nullptr;
  auto needed = std::make_unique<Strides>();
  if (needs_strides(shape, *needed)) {
    segment.strides = needed.get();
    strides = std::move(needed);
  }
  return nullptr;
}

}  // namespace

GradNormArgs read_grad_norm_args(const TensorList& grads) {
  const size_t count = grads.size();
  STD_TORCH_CHECK(count > 0, "radam_fused::grad_norm_native: grads must have at least one tensor");
  GradNormArgs read;
  read.dtype = dtype_of(grads[0]);
  read.device = device_of(grads[0]);
  read.segments.resize(count);
  read.strides.resize(count);
  const auto read_one = [&](size_t i) {
    return read_gradient(grads[i], read.dtype, read.device, read.segments[i], read.strides[i]);
  };
  read_each("radam_fused::grad_norm_native", count, read_one, [](size_t) { return ""; });
  drop_empty(read.segments);
  return read;
}

}  // namespace radam_fused
