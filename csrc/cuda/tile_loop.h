// The loop of a GPU over the tiles of a bucket, and what it looks up of each. The same lines are compiled for the host,
// where tests run them block by block and thread by thread (tests/support/cuda_host_step.cpp).
//
// A tile is kTile consecutive elements of one segment, or more of low-precision state. Blocks take tiles in turn, and
// threads share the elements of a tile. No thread needs the results of another, so any number of blocks and threads
// gives the same bits.
#pragma once

#include "cuda/launch_args.h"
#include "cuda/memory_access.h"
#include "numerics/grad_norm_order.h"
#include "numerics/radam_update.h"

namespace radam_fused {

struct ThreadIndex {
  uint32_t block, blocks, thread;
};

// The gradient of a segment.
template <typename G, typename Arguments>
RADAM_HD G* gradient_of(const Arguments& arguments, int32_t segment) {
  const uint32_t at = uint32_t(segment) * sizeof(G*);
  return arguments.grads == nullptr ? read_argument<G*>(arguments.by_value + arguments.grads_at + at)
                                    : look_up<G*>(arguments.grads + at);
}

// The scalars as the arithmetic takes them: rounded on the host, or here in the same way if a device has computed them.
template <typename T, typename Arguments>
RADAM_HD StepScalars<T> scalars_at(const Arguments& arguments, uint32_t index) {
  if (arguments.scalars == nullptr)
    return read_argument<StepScalars<T>>(arguments.by_value + index * sizeof(StepScalars<T>));
  struct Columns {
    double value[kScalarColumns];
  };
  return StepScalars<T>::from(look_up<Columns>(arguments.scalars + size_t(index) * kScalarColumns).value);
}

struct Offsets {
  int64_t param, grad;
};

// Offsets in parameter and gradient of the element at a position in the order of the moments.
template <typename Index>
RADAM_HD Offsets locate(const int64_t* strides, Index position) {
  Offsets at{0, 0};
  for (int64_t dims = *strides++; dims > 0; --dims, strides += 3) {
    const Index size = Index(strides[0]);
    const Index outer = position / size;
    const int64_t index = int64_t(position - outer * size);
    at.param += index * strides[1];
    at.grad += index * strides[2];
    position = outer;
  }
  return at;
}

// The elements of a tile within its segment.
struct TileRange {
  int64_t offset;
  int length;
};

template <int Tile = kTile>
RADAM_HD TileRange range_of(const TileSegment& segment, uint32_t tile) {
  const int64_t offset = int64_t(tile - segment.first_tile) * Tile;
  return {offset, segment.length - offset < Tile ? int(segment.length - offset) : Tile};
}

// Visits the tiles of one block, each with its segment. The segment of the next tile is looked up before the current
// tile is visited.
template <typename Arguments, typename Visit>
RADAM_HD void for_each_tile(const Arguments& arguments, const ThreadIndex& thread_index, const Visit& visit) {
  uint32_t tile = thread_index.block;
  if (tile >= arguments.tiles) return;
  int32_t segment = look_up<int32_t>(arguments.tile_segment + tile);
  while (true) {
    const uint32_t next = tile + thread_index.blocks;
    const int32_t next_segment = next < arguments.tiles ? look_up<int32_t>(arguments.tile_segment + next) : 0;
    visit(tile, segment);
    if (next >= arguments.tiles) return;
    tile = next;
    segment = next_segment;
  }
}

}  // namespace radam_fused
