// Tensors as they reach a boxed kernel of the LibTorch stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "../segments.h"
#include "kernels.h"

namespace radam_fused {

// The lists that a step takes hold up to tens of thousands of tensors, twice. std::vector<torch::stable::Tensor> costs
// two allocations an element; this reads each handle once and drops it, while the list itself keeps its tensors alive.
class TensorList {
 public:
  explicit TensorList(StableListHandle handle) : handle_(handle) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_size(handle_, &size_));
  }
  ~TensorList() { torch_delete_list(handle_); }
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  size_t size() const { return size_; }

  // Calls visit(handle) with a borrowed handle of the tensor at `index`.
  template <typename Visit>
  void with(size_t index, Visit&& visit) const {
    StableIValue item;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_get_item(handle_, index, &item));
    struct Owned {
      AtenTensorHandle handle;
      ~Owned() { aoti_torch_delete_tensor_object(handle); }
    } owned{torch::stable::detail::to<AtenTensorHandle>(item)};
    visit(owned.handle);
  }

 private:
  StableListHandle handle_;
  size_t size_ = 0;
};

inline int dtype_of(AtenTensorHandle tensor) {
  static const int32_t known[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float16(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float64()};
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  for (int i = 0; i < kUnsupported; ++i) {
    if (dtype == known[i]) return i;
  }
  return kUnsupported;
}

inline bool is_strided_cpu(AtenTensorHandle tensor) {
  static const int32_t strided = aoti_torch_layout_strided();
  static const int32_t cpu = aoti_torch_device_type_cpu();
  int32_t layout, device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor, &layout));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device));
  return layout == strided && device == cpu;
}

inline Shape shape_of(AtenTensorHandle tensor) {
  int64_t* sizes;
  int64_t* strides;
  int64_t dim;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  return {sizes, strides, dim};
}

inline bool is_contiguous(AtenTensorHandle tensor) {
  bool contiguous;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &contiguous));
  return contiguous;
}

}  // namespace radam_fused
