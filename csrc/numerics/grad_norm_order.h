// The order in which the squares of gradients are added, which every backend keeps: elements are numbered in tiles of
// kTile over all gradients, and partial sum s adds the tiles from s * tiles / 1024 up to (s + 1) * tiles / 1024. Lane i
// adds the squares of element i of each tile: in float32 over kRun tiles, counted from the first tile of the sum, and
// these runs in float64. So a gradient costs an eighth of a float64 operation an element, of which many GPUs can do
// only one for every 64 of float32; the norm's relative error stays below 1e-6, and its range is that of torch's own
// norm.
#pragma once

#include <cstdint>
#include <type_traits>

#include "numerics/dtypes.h"

namespace radam_fused {

// Must match NORM_TILE and PARTIAL_SUMS in radam_fused/numerics/layout.py.
constexpr int kTile = 1024;  // elements
constexpr int kPartialSums = 1024;
constexpr int kLanes = kTile;

// Tiles of a run; must match NORM_RUN there. All of float64.
template <typename G>
constexpr int kRun = std::is_same_v<G, double> ? INT32_MAX : 16;

RADAM_HD int64_t first_tile_of(int64_t sum, int64_t tiles) { return sum * tiles / kPartialSums; }

// The type in which a run is added: float32, or float64.
template <typename G>
using RunType = decltype(widen(G{}));

template <typename T>
RADAM_HD T square(T value) {
  return value * value;
}

}  // namespace radam_fused
