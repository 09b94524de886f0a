// Builds on the host what the kernels read: segment table, scalars and gradient addresses. Nothing here depends on
// where the tables are stored, so tests use them in host memory.
#pragma once

#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "args/scratch.h"
#include "args/segment.h"
#include "cuda/low_precision_args.h"
#include "cuda/memory_access.h"
#include "cuda/segment_table.h"
#include "numerics/grad_norm_order.h"
#include "numerics/radam_update.h"
#include "numerics/state_format.h"

namespace radam_fused {

// A buffer that all segments share.
struct FlatBuffer {
  const char* data;
  int64_t item;

  bool aligned_at(int64_t start) const { return is_aligned(data + start * item); }
};

// The elements of a tile.
inline int64_t tile_of(const StateFormat& format) { return format.is_full_precision() ? kTile : kLowPrecisionTile; }

// The buffers of a bucket's state that have one element per parameter element.
inline std::vector<FlatBuffer> flat_buffers(const StateFormat& format, const StateBuffers& state) {
  const int64_t moment = format.moment_item();
  return {{state.exp_avg, moment}, {state.exp_avg_sq, moment}, {state.master, format.master_item()}};
}

// Builds the segment table and the list of gradients of one launch, over segments of one gradient dtype.
class LaunchBuilder {
 public:
  explicit LaunchBuilder(std::vector<FlatBuffer> buffers, int64_t tile = kTile)
      : buffers_(std::move(buffers)), tile_(tile) {
    table.segments.swap(segments_);
    grads.swap(grads_);
  }
  ~LaunchBuilder() {
    table.segments.swap(segments_);
    grads.swap(grads_);
  }
  LaunchBuilder(const LaunchBuilder&) = delete;
  LaunchBuilder& operator=(const LaunchBuilder&) = delete;

  void reserve(size_t segments) {
    table.segments.reserve(segments);
    grads.reserve(segments);
  }

  void add(const Segment& segment) {
    const int64_t end = tiles_ + (segment.numel + tile_ - 1) / tile_;
    if (end > kMaxTiles || table.strides.size() > INT32_MAX) {
      throw std::length_error("radam_fused: more than 2^41 elements in one bucket");
    }
    TileSegment entry{};
    entry.param = segment.param;
    entry.start = segment.start;
    entry.length = segment.numel;
    entry.first_tile = uint32_t(tiles_);
    entry.scalar_index = uint32_t(segment.scalar_index);
    entry.strides = kContiguous;
    entry.aligned = is_aligned(segment.param);
    for (const FlatBuffer& buffer : buffers_) entry.aligned = entry.aligned && buffer.aligned_at(segment.start);
    entry.overlapping = segment.overlapping;
    entry.rng_offset = segment.rng_offset;
    if (segment.strides != nullptr) entry.strides = append_strides(*segment.strides);
    table.segments.push_back(entry);
    table.tiles = uint32_t(tiles_ = end);
    grads.push_back(segment.grad);
  }

  SegmentTable table;
  std::vector<const void*> grads;

 private:
  static constexpr int64_t kMaxTiles = int64_t(1) << 31;  // so that the number of a block's next tile does not overflow

  int32_t append_strides(const Strides& strides) {
    const auto at = int32_t(table.strides.size());
    table.strides.push_back(int64_t(strides.size.size()));
    for (size_t d = strides.size.size(); d-- > 0;) {
      table.strides.insert(table.strides.end(), {strides.size[d], strides.param[d], strides.grad[d]});
    }
    return at;
  }

  std::vector<FlatBuffer> buffers_;
  Scratch<TileSegment> segments_;  // memory of the vectors in `table` and `grads`
  Scratch<const void*> grads_;
  const int64_t tile_;  // elements
  int64_t tiles_ = 0;
};

// The gradient dtypes of a launch: one, for nearly every model.
inline std::vector<int> gradient_dtypes(const std::vector<Segment>& segments) {
  std::vector<int> found;
  for (const Segment& segment : segments) {
    if (std::find(found.begin(), found.end(), segment.grad_dtype) == found.end()) found.push_back(segment.grad_dtype);
  }
  return found;
}

// Scalars as kernels take them by value: rounded from float64 to the dtype of the arithmetic.
inline std::vector<unsigned char> round_scalars(const double* scalars, int64_t count, int param_dtype) {
  const auto round = [&](auto zero) {
    using T = decltype(zero);
    std::vector<unsigned char> bytes(count * sizeof(StepScalars<T>));
    for (int64_t i = 0; i < count; ++i) {
      const StepScalars<T> scalar_index = StepScalars<T>::from(scalars + i * kScalarColumns);
      std::memcpy(bytes.data() + i * sizeof(scalar_index), &scalar_index, sizeof(scalar_index));
    }
    return bytes;
  };
  return param_dtype == kFloat64 ? round(0.0) : round(0.0f);
}

// How many bytes are passed by value, and which of the two; the other is passed in a table.
struct ByValue {
  size_t bytes = 0;
  bool scalars = false;
  bool grads = false;
};

template <typename Arguments>
ByValue pass_by_value(const std::vector<unsigned char>& scalars, const std::vector<const void*>& grads, size_t capacity,
                      Arguments& arguments) {
  ByValue passed;
  if (scalars.size() <= capacity) {
    copy_values(scalars, arguments.by_value);
    passed.scalars = true;
    passed.bytes = (scalars.size() + 7) / 8 * 8;
  }
  const size_t bytes = grads.size() * sizeof(grads[0]);
  if (passed.bytes + bytes <= capacity) {
    copy_values(grads, arguments.by_value + passed.bytes);
    passed.grads = true;
    arguments.grads_at = uint32_t(passed.bytes);
    passed.bytes += bytes;
  }
  return passed;
}

// Sets the addresses of the state; for low-precision state its format too.
inline void set_state(const StateFormat&, const StateBuffers& state, int, StepTables& tables) {
  tables.exp_avg = state.exp_avg;
  tables.exp_avg_sq = state.exp_avg_sq;
}

inline void set_state(const StateFormat& format, const StateBuffers& state, int grad_dtype,
                      LowPrecisionTables& tables) {
  set_state(format, state, grad_dtype, static_cast<StepTables&>(tables));
  tables.scales = state.scales;
  tables.sq_scales = state.sq_scales;
  tables.master = state.master;
  tables.format = format;
  tables.grad_dtype = grad_dtype;
}

}  // namespace radam_fused
