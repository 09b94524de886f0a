#include "python/tensor_pairs.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <vector>

#include "python/libtorch_symbols.h"

namespace radam_fused {
namespace {

constexpr int64_t kPairsPerThread = 1024;  // some 30 us
constexpr int kPairsAtOnce = 32;           // pairs whose cache misses overlap

bool is_on(AtenTensorHandle tensor, const Device& device) {
  const Device found = device_of(tensor);
  return found.type == device.type && found.index == device.index;
}

// Whether two tensors have the same shape and strides. The stride of a dimension of size 1 does not matter.
bool same_layout(const Shape& a, const Shape& b) {
  if (a.dim != b.dim) return false;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] != b.size[d] || (a.stride[d] != b.stride[d] && a.size[d] != 1)) return false;
  }
  return true;
}

// The address of a tensor's elements; false if it has none, or torch negates the elements as it reads them.
bool address_of(AtenTensorHandle tensor, void*& data) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  return data != nullptr && !is_neg(tensor);
}

// Whether the storage of a dense tensor holds all of its elements. A storage of exactly their size does; in a larger
// one the tensor may begin anywhere.
bool is_whole(AtenTensorHandle tensor, const Shape& shape, int64_t numel, int64_t item) {
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor, &bytes));
  return bytes == numel * item || (bytes > numel * item && is_stored(tensor, shape, item));
}

// Reads a pair; false if it is not two arrays in the order of their moments.
bool read_pair(AtenTensorHandle grad, const TensorPairs& pairs, int64_t hash, TensorPair& pair) try {
  if (!is_defined(grad)) return false;
  if (!is_on(pair.tensor, pairs.device) || !is_strided_on(grad, pairs.device)) return false;
  const Shape shape = shape_of(pair.tensor);
  const Shape grad_shape = shape_of(grad);
  const int grad_dtype = dtype_of(grad);
  if (dtype_of(pair.tensor) != pairs.dtype || !supported(pairs.dtype, grad_dtype)) return false;
  if (layout_hash(shape) != hash || !same_layout(shape, grad_shape)) return false;
  pair.grad_dtype = grad_dtype;
  // A freed storage has a null address, but a tensor at an offset into it does not.
  return pair.numel == 0 || (address_of(pair.tensor, pair.param) && address_of(grad, pair.grad) &&
                             is_whole(pair.tensor, shape, pair.numel, item_size(pairs.dtype)) &&
                             is_whole(grad, grad_shape, pair.numel, item_size(grad_dtype)));
} catch (const std::exception&) {
  return false;  // the dispatcher's path reports what is wrong
}

// Whether a parameter and its gradient are where the table has them, or there is still no gradient.
bool is_unmoved(const TensorPair& pair, const TensorPairs& pairs) try {
  const AtenTensorHandle grad = grad_of(impl_of(pair.tensor));
  void* data;
  if (pair.numel > 0 && !(is_on(pair.tensor, pairs.device) && address_of(pair.tensor, data) && data == pair.param)) {
    return false;
  }
  if (!is_defined(grad) || pair.grad == nullptr) return !is_defined(grad) && pair.grad == nullptr;
  return is_strided_on(grad, pairs.device) && dtype_of(grad) == pairs.dtype &&
         same_layout(shape_of(pair.tensor), shape_of(grad)) &&
         (pair.numel == 0 || (address_of(grad, data) && data == pair.grad));
} catch (const std::exception&) {
  return false;
}

// Prefetches a TensorImpl, some 200 bytes.
void prefetch_impl(const void* impl) {
  for (int at = 0; at < 256; at += 64) __builtin_prefetch(static_cast<const char*>(impl) + at);
}

// Prefetches what the first words of a TensorImpl point to: its storage and autograd's data, in any order. Prefetching
// a word that is no address does no harm.
void prefetch_parts(const void* impl) {
  for (int word = 1; word < 6; ++word) __builtin_prefetch(static_cast<void* const*>(impl)[word]);
}

// Each pair is a chain of some six dependent cache misses; kPairsAtOnce chains overlap. Sets `moved` if a parameter has
// another address than when the table was last filled in.
bool read_range(const TensorPairs& pairs, int64_t begin, int64_t end, std::atomic<bool>& moved) {
  const void* impls[kPairsAtOnce];
  AtenTensorHandle grads[kPairsAtOnce];
  for (int64_t at = begin; at < end; at += kPairsAtOnce) {
    TensorPair* data = pairs.data + at;
    const int n = int(std::min<int64_t>(kPairsAtOnce, end - at));
    for (int i = 0; i < n; ++i) prefetch_impl(impls[i] = impl_of(data[i].tensor));
    for (int i = 0; i < n; ++i) prefetch_parts(impls[i]);
    for (int i = 0; i < n; ++i) prefetch_impl(impl_of(grads[i] = grad_of(impls[i])));
    for (int i = 0; i < n; ++i) prefetch_parts(impl_of(grads[i]));
    for (int i = 0; i < n; ++i) {
      const void* before = data[i].param;
      if (!read_pair(grads[i], pairs, pairs.segments[at + i].layout_hash, data[i])) return false;
      if (data[i].param != before) moved = true;
    }
  }
  return true;
}

// Whether no two parameters share memory: a launch would update both at the same time. If two do, their addresses are
// cleared, so that the next step checks again.
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

void bump_versions(const TensorPairs& pairs, bool of_grads) try {
  for (int64_t at = 0; at < pairs.count; at += kPairsAtOnce) {
    const int64_t end = std::min(at + kPairsAtOnce, pairs.count);
    for (int64_t i = at; i < end; ++i) prefetch_parts(impl_of(pairs.data[i].tensor));
    for (int64_t i = at; i < end; ++i) bump_version(pairs.data[i].tensor);
    for (int64_t i = at; i < end && of_grads; ++i) bump_version(grad_of(impl_of(pairs.data[i].tensor)));
  }
} catch (const std::exception&) {
  // Tensors made in inference mode have no version counter. Checking that first would slow every step; raising a
  // counter twice does no harm.
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
  for (int64_t at = 0; at < count; at += kPairsAtOnce) {
    const int n = int(std::min<int64_t>(kPairsAtOnce, count - at));
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

}  // namespace radam_fused
