#include "args/grad_norm_args.h"

#include <algorithm>

namespace radam_fused {
namespace {

const char* read_gradient(AtenTensorHandle grad, int dtype, const Device& device, Segment& segment,
                          std::unique_ptr<Strides>& strides) {
  if (!is_strided_on(grad, device)) return "not a strided tensor on the device of the first";
  segment.grad_dtype = dtype_of(grad);
  if (segment.grad_dtype == kUnsupported) return "must be float32, float64, float16 or bfloat16";
  if (segment.grad_dtype != dtype) return "another dtype than the first: a list has one";
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(grad, &segment.numel));
  if (segment.numel == 0) return nullptr;
  const void* data;  // a copy-on-write tensor stays one: it is only read
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(grad, &data));
  segment.grad = const_cast<void*>(data);
  const Shape shape = shape_of(grad);
  if (segment.grad == nullptr || !is_stored(grad, shape, item_size(dtype))) return kFreed;
  if (is_contiguous(grad)) return nullptr;
  auto walk = std::make_unique<Strides>();
  if (!plain(shape, *walk)) {
    segment.strides = walk.get();
    strides = std::move(walk);
  }
  return nullptr;
}

}  // namespace

Gradients read_gradients(const TensorList& grads) {
  const size_t count = grads.size();
  STD_TORCH_CHECK(count > 0, "radam_fused::squares_native: grads must have at least one tensor");
  Gradients read;
  read.dtype = dtype_of(grads[0]);
  read.device = device_of(grads[0]);
  read.segments.resize(count);
  read.strides.resize(count);
  const auto read_one = [&](size_t i) {
    return read_gradient(grads[i], read.dtype, read.device, read.segments[i], read.strides[i]);
  };
  read_each("radam_fused::squares_native", count, read_one, [](size_t) { return ""; });
  auto empty = [](const Segment& segment) { return segment.numel == 0; };
  read.segments.erase(std::remove_if(read.segments.begin(), read.segments.end(), empty), read.segments.end());
  return read;
}

}  // namespace radam_fused
