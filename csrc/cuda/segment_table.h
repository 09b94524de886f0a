// The segments of a launch and the map from tiles to segments, in one block of memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda/launch_args.h"

namespace radam_fused {

// Copies all values. An empty vector has no memory, and memcpy takes no null pointer, even for no bytes.
template <typename T>
void copy_values(const std::vector<T>& from, void* to) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size() * sizeof(T));
}

// What stays the same from step to step, as long as the same parameters have gradients of the same layout.
struct SegmentTable {
  std::vector<TileSegment> segments;
  std::vector<int64_t> strides;
  uint32_t tiles = 0;

  bool operator==(const SegmentTable& other) const {
    if (segments.size() != other.segments.size() || strides != other.strides) return false;
    return segments.empty() || std::memcmp(segments.data(), other.segments.data(), strides_at()) == 0;
  }

  // Offsets of the parts in the block of memory.
  size_t strides_at() const { return segments.size() * sizeof(TileSegment); }
  size_t tiles_at() const { return strides_at() + strides.size() * sizeof(int64_t); }
  size_t bytes() const { return tiles_at() + tiles * sizeof(int32_t); }

  void write(unsigned char* to) const {
    copy_values(segments, to);
    copy_values(strides, to + strides_at());
    auto* tile = reinterpret_cast<int32_t*>(to + tiles_at());
    for (size_t i = 0; i < segments.size(); ++i) {
      const uint32_t end = i + 1 < segments.size() ? segments[i + 1].first_tile : tiles;
      std::fill_n(tile + segments[i].first_tile, end - segments[i].first_tile, int32_t(i));
    }
  }

  // Sets the arguments of a launch to what `write` has written to this memory.
  void point(const void* memory, TileTables& tables) const {
    const auto* at = static_cast<const unsigned char*>(memory);
    tables.segments = reinterpret_cast<const TileSegment*>(at);
    tables.strides = reinterpret_cast<const int64_t*>(at + strides_at());
    tables.tile_segment = reinterpret_cast<const int32_t*>(at + tiles_at());
    tables.tiles = tiles;
  }
};

}  // namespace radam_fused
