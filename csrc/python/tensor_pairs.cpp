#include "python/tensor_pairs.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <vector>

#include "python/libtorch_symbols.h"

namespace radam_fused {
namespace {

constexpr int64_t kPairsPerThread = 1024;  // some 30 us
constexpr int kStretch = 32;               // pairs whose cache misses are waited for together

bool is_on(AtenTensorHandle tensor, const Device& device) {
  const Device found = device_of(tensor);
  return found.type == device.type && found.index == device.index;
}

// Whether a gradient lies as its parameter does. Where a dimension has one place its stride does not matter.
bool alike(const Shape& a, const Shape& b) {
  if (a.dim != b.dim) return false;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] != b.size[d] || (a.stride[d] != b.stride[d] && a.size[d] != 1)) return false;
  }
  return true;
}

// The address of a tensor's elements; false where it has none of its own, or torch negates them as it reads.
bool address_of(AtenTensorHandle tensor, void*& data) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  return data != nullptr && !is_neg(tensor);
}

// Whether the storage of a dense tensor holds its elements. A storage of its own has just their bytes, which takes one
// call to see; what is a part of a larger one may begin anywhere in it.
bool is_whole(AtenTensorHandle tensor, const Shape& shape, int64_t numel, int64_t item) {
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor, &bytes));
  return bytes == numel * item || (bytes > numel * item && is_stored(tensor, shape, item));
}

// Fills in a pair, or returns false where it is not two arrays in the order that the moments were laid out in.
bool read_pair(AtenTensorHandle grad, const TensorPairs& pairs, int64_t layout, TensorPair& pair) try {
  if (!is_defined(grad)) return false;
  if (!is_on(pair.tensor, pairs.device) || !is_strided_on(grad, pairs.device)) return false;
  const Shape shape = shape_of(pair.tensor);
  const Shape grad_shape = shape_of(grad);
  const int grad_dtype = dtype_of(grad);
  if (dtype_of(pair.tensor) != pairs.dtype || !supported(pairs.dtype, grad_dtype)) return false;
  if (layout_hash(shape) != layout || !alike(shape, grad_shape)) return false;
  pair.grad_dtype = grad_dtype;
  // A freed storage has no address; its tensor has one where it begins with an offset.
  return pair.numel == 0 || (address_of(pair.tensor, pair.param) && address_of(grad, pair.grad) &&
                             is_whole(pair.tensor, shape, pair.numel, item_size(pairs.dtype)) &&
                             is_whole(grad, grad_shape, pair.numel, item_size(grad_dtype)));
} catch (const std::exception&) {
  return false;  // the ordinary way tells what is wrong with it
}

// Whether a parameter and its gradient lie where a row says; without an address for the gradient, that there is none.
bool is_unmoved(const TensorPair& pair, const TensorPairs& pairs) try {
  const AtenTensorHandle grad = grad_of(impl_of(pair.tensor));
  void* data;
  if (pair.numel > 0 && !(is_on(pair.tensor, pairs.device) && address_of(pair.tensor, data) && data == pair.param)) {
    return false;
  }
  if (!is_defined(grad) || pair.grad == nullptr) return !is_defined(grad) && pair.grad == nullptr;
  return is_strided_on(grad, pairs.device) && dtype_of(grad) == pairs.dtype &&
         alike(shape_of(pair.tensor), shape_of(grad)) &&
         (pair.numel == 0 || (address_of(grad, data) && data == pair.grad));
} catch (const std::exception&) {
  return false;
}

// Asks for a TensorImpl, some 200 bytes.
void prefetch_impl(const void* impl) {
  for (int at = 0; at < 256; at += 64) __builtin_prefetch(static_cast<const char*>(impl) + at);
}

// Asks for what the first words of a TensorImpl point to: its storage and what autograd knows, in whatever order. To
// ask for what is no address does no harm.
void prefetch_parts(const void* impl) {
  for (int word = 1; word < 6; ++word) __builtin_prefetch(static_cast<void* const*>(impl)[word]);
}

// Each pair is a chain of some six cache misses, one link leading to the next: a stretch of pairs takes every link
// together. `moved` becomes true where a parameter has another address than when the rows were last filled in.
bool read_range(const TensorPairs& pairs, int64_t begin, int64_t end, std::atomic<bool>& moved) {
  const void* impls[kStretch];
  AtenTensorHandle grads[kStretch];
  for (int64_t at = begin; at < end; at += kStretch) {
    TensorPair* data = pairs.data + at;
    const int n = int(std::min<int64_t>(kStretch, end - at));
    for (int i = 0; i < n; ++i) prefetch_impl(impls[i] = impl_of(data[i].tensor));
    for (int i = 0; i < n; ++i) prefetch_parts(impls[i]);
    for (int i = 0; i < n; ++i) prefetch_impl(impl_of(grads[i] = grad_of(impls[i])));
    for (int i = 0; i < n; ++i) prefetch_parts(impl_of(grads[i]));
    for (int i = 0; i < n; ++i) {
      const void* before = data[i].param;
      if (!read_pair(grads[i], pairs, pairs.segments[2 * (at + i) + 1], data[i])) return false;
      if (data[i].param != before) moved = true;
    }
  }
  return true;
}

// Whether no two parameters share memory: one launch would step both at the same time. Where two do, this is asked
// again in the next step.
bool share_no_memory(const TensorPairs& pairs) {
  std::vector<MemorySpan> spans;
  spans.reserve(pairs.count);
  for (int64_t i = 0; i < pairs.count; ++i) {
    const char* begin = static_cast<const char*>(pairs.data[i].param);
    if (pairs.data[i].numel > 0) spans.push_back({begin, begin + pairs.data[i].numel * item_size(pairs.dtype)});
  }
  if (are_apart(spans)) return true;
  for (int64_t i = 0; i < pairs.count; ++i) pairs.data[i].param = nullptr;
  return false;
}

}  // namespace

bool are_apart(std::vector<MemorySpan>& spans) {
  std::sort(spans.begin(), spans.end(), [](const MemorySpan& a, const MemorySpan& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i].begin < spans[i - 1].end) return false;
  }
  return true;
}

bool read_pairs(const TensorPairs& pairs) {
  std::atomic<bool> plain{true}, moved{false};
  torch::stable::parallel_for(0, pairs.count, kPairsPerThread, [&](int64_t begin, int64_t end) {
    if (!read_range(pairs, begin, end, moved)) plain = false;
  });
  return plain && (!moved || share_no_memory(pairs));
}

void count_versions(const TensorPairs& pairs, bool of_grads) try {
  for (int64_t at = 0; at < pairs.count; at += kStretch) {
    const int64_t end = std::min(at + kStretch, pairs.count);
    for (int64_t i = at; i < end; ++i) prefetch_parts(impl_of(pairs.data[i].tensor));
    for (int64_t i = at; i < end; ++i) bump_version(pairs.data[i].tensor);
    for (int64_t i = at; i < end && of_grads; ++i) bump_version(grad_of(impl_of(pairs.data[i].tensor)));
  }
} catch (const std::exception&) {
  // Tensors that were made in inference mode have no version counter. To ask first would cost every step; a counter
  // that is raised twice does no harm.
  const auto raise_if_any = [](AtenTensorHandle tensor) {
    if (!is_inference(tensor)) bump_version(tensor);
  };
  for (int64_t i = 0; i < pairs.count; ++i) {
    raise_if_any(pairs.data[i].tensor);
    if (of_grads) raise_if_any(grad_of(impl_of(pairs.data[i].tensor)));
  }
}

bool are_unmoved(const TensorPairs& pairs) {
  for (int64_t i = 0; i < pairs.count; ++i) {
    if (!is_unmoved(pairs.data[i], pairs)) return false;
  }
  return true;
}

bool are_intact(const View* views, int64_t count) {
  for (int64_t at = 0; at < count; at += kStretch) {
    const int n = int(std::min<int64_t>(kStretch, count - at));
    for (int i = 0; i < n; ++i) prefetch_impl(impl_of(views[at + i].tensor));
    for (int i = 0; i < n; ++i) prefetch_parts(impl_of(views[at + i].tensor));
    for (int i = 0; i < n; ++i) {
      void* data = nullptr;
      const View& view = views[at + i];
      if (aoti_torch_get_data_ptr(view.tensor, &data) != AOTI_TORCH_SUCCESS || data != view.data) return false;
    }
  }
  return true;
}

HeldGradients::HeldGradients(const TensorPairs& pairs) {
  grads_.resize(pairs.count);
  for (int64_t i = 0; i < pairs.count; ++i) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(grad_of(impl_of(pairs.data[i].tensor)), &grads_[i]));
  }
}

HeldGradients::~HeldGradients() {
  for (size_t i = grads_.size(); i-- > 0;) aoti_torch_delete_tensor_object(grads_[i]);
}

}  // namespace radam_fused
