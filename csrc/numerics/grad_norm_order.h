// The order in which the squares of gradients are added, which every backend keeps: elements are numbered in tiles of
// kTile over all gradients, and partial sum s adds the tiles from s * tiles / 1024 up to (s + 1) * tiles / 1024.
#pragma once

#include "numerics/dtypes.h"

namespace radam_fused {

// Must match NORM_TILE and PARTIAL_SUMS in radam_fused/numerics/layout.py.
constexpr int kTile = 1024;  // elements
constexpr int kPartialSums = 1024;
constexpr int kLanes = kTile;

RADAM_HD int64_t first_tile_of(int64_t sum, int64_t tiles) { return sum * tiles / kPartialSums; }

// In float64, where only the square itself is rounded.
template <typename G>
RADAM_HD double square(G stored) {
  const double value = double(widen(stored));
  return value * value;
}

}  // namespace radam_fused
