// Tensors as a boxed kernel of the LibTorch stable ABI gets them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <memory>
#include <string>

#include "args/segment.h"
#include "numerics/dtypes.h"

namespace radam_fused {

// A tensor list passed to a boxed kernel. It owns the list and the handles of its tensors: reading one twice is
// allowed, and every tensor lives as long as the list. std::vector<torch::stable::Tensor> would cost an allocation more
// per tensor, and a step has two lists of up to tens of thousands.
class TensorList {
 public:
  explicit TensorList(StableListHandle handle) : handle_(handle) {
    TORCH_ERROR_CODE_CHECK(torch_list_size(handle_, &size_));
  }
  ~TensorList() {
    // In reverse: the tensors read last are still in the caches.
    for (size_t i = size_; i-- > 0;) aoti_torch_delete_tensor_object((*this)[i]);
    torch_delete_list(handle_);
  }
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  size_t size() const { return size_; }

  // A borrowed handle.
  AtenTensorHandle operator[](size_t index) const {
    StableIValue item = 0;
    torch_list_get_item(handle_, index, &item);
    return torch::stable::detail::to<AtenTensorHandle>(item);
  }

 private:
  StableListHandle handle_;
  size_t size_ = 0;
};

// Reads tensors by index, on torch's threads: `read` returns what is wrong with one, or null. Raises for a tensor with
// a problem; `values` describes it.
template <typename Read, typename Values>
void read_each(const char* op, size_t count, const Read& read, const Values& values) {
  constexpr int64_t kTensorsPerThread = 512;  // each costs a chain of cache misses
  struct Problem {
    int64_t index;
    const char* what;
  };
  std::atomic<const Problem*> problem{nullptr};
  torch::stable::parallel_for(0, int64_t(count), kTensorsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* what = read(size_t(i));
      if (what == nullptr) continue;
      const Problem* mine = new Problem{i, what};
      const Problem* none = nullptr;
      if (!problem.compare_exchange_strong(none, mine)) delete mine;
    }
  });
  if (const std::unique_ptr<const Problem> found{problem.load()}) {
    STD_TORCH_CHECK(false, op, ": tensor ", found->index, " of the lists: ", found->what, values(size_t(found->index)));
  }
}

// A tensor that shares a borrowed handle's tensor.
inline torch::stable::Tensor borrowed(AtenTensorHandle tensor) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor, &handle));
  return torch::stable::Tensor(handle);
}

inline int dtype_of(AtenTensorHandle tensor) {
  static const int32_t torch_dtypes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float16(),
                                         aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float64()};
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  for (int i = 0; i < kUnsupported; ++i) {
    if (dtype == torch_dtypes[i]) return i;
  }
  return kUnsupported;
}

// Whether a tensor has this dtype of torch, as aoti_torch_dtype_int8() and the like return it; for dtypes of state
// alone.
inline bool has_dtype(AtenTensorHandle tensor, int32_t torch_dtype) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  return dtype == torch_dtype;
}

inline bool is_contiguous(AtenTensorHandle tensor) {
  bool contiguous;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &contiguous));
  return contiguous;
}

inline bool is_int64(AtenTensorHandle tensor) {
  return has_dtype(tensor, aoti_torch_dtype_int64()) && is_contiguous(tensor);
}

struct Device {
  int32_t type;
  int32_t index;  // 0 for the CPU
};

inline Device device_of(AtenTensorHandle tensor) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  Device device{};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device.type));
  if (device.type != cpu) TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device.index));
  return device;
}

inline bool is_on_cpu(AtenTensorHandle tensor) { return device_of(tensor).type == aoti_torch_device_type_cpu(); }

inline bool is_strided_on(AtenTensorHandle tensor, const Device& device) {
  static const int32_t strided = aoti_torch_layout_strided();
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor, &layout));
  const Device found = device_of(tensor);
  return layout == strided && found.type == device.type && found.index == device.index;
}

inline Shape shape_of(AtenTensorHandle tensor) {
  int64_t* sizes;
  int64_t* strides;
  int64_t dim;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  return {sizes, strides, dim};
}

constexpr const char* kFreed = "its storage does not hold all of its elements: it was freed or made smaller (resize_)";

// Whether the storage of a tensor with elements of `item` bytes holds all of them. The tensor must not be empty.
inline bool is_stored(AtenTensorHandle tensor, const Shape& shape, int64_t item) {
  int64_t bytes, last;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor, &bytes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor, &last));
  for (int64_t d = 0; d < shape.dim; ++d) last += (shape.size[d] - 1) * shape.stride[d];
  return last < bytes / item;
}

// The same for a tensor of any size and dtype; its address must not be null either.
inline bool is_stored(const torch::stable::Tensor& tensor) {
  return tensor.numel() == 0 || (is_stored(tensor.get(), shape_of(tensor.get()), int64_t(tensor.element_size())) &&
                                 tensor.const_data_ptr() != nullptr);
}

}  // namespace radam_fused
