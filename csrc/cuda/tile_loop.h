// The walk over the flat index space that a GPU makes, once for the device and for the host, whose tests run these very
// lines block by block and thread by thread (tests/support/cuda_host_step.cpp).
//
// A tile is a stretch of kTile elements of one segment. Blocks take tiles in turn, threads share a tile's elements; no
// thread needs another, so any number of either gives the same bits.
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

// A row as the computation takes it: rounded on the host, or here, in the same way, where it has been made on a device.
template <typename T, typename Arguments>
RADAM_HD StepScalars<T> scalars_at(const Arguments& arguments, uint32_t index) {
  if (arguments.scalars == nullptr)
    return read_argument<StepScalars<T>>(arguments.by_value + index * sizeof(StepScalars<T>));
  struct Columns {
    double value[kScalarColumns];
  };
  return StepScalars<T>::from(look_up<Columns>(arguments.scalars + size_t(index) * kScalarColumns).value);
}

// The arrays of a tile, each from its own first element of the tile.
template <typename P, typename G>
struct Tile {
  using T = ComputeType<P>;
  P* p;
  G* g;
  T* m;
  T* v;
};

// What is done to runs of N neighbours each, `distance` elements apart. First: the update. All loads are on their way
// before the first is used.
template <typename T>
struct Update {
  const StepScalars<T>& scalars;

  template <int N, int Vectors, typename P, typename G>
  RADAM_HD void apply(const Tile<P, G>& tile, int at, int distance) const {
    AlignedVector<P, N> p[Vectors];
    AlignedVector<G, N> g[Vectors];
    AlignedVector<T, N> m[Vectors];
    AlignedVector<T, N> v[Vectors];
    RADAM_UNROLL
    for (int r = 0; r < Vectors; ++r) {
      p[r] = AlignedVector<P, N>::load(tile.p + at + r * distance);
      g[r] = AlignedVector<G, N>::load(tile.g + at + r * distance);
      m[r] = AlignedVector<T, N>::load(tile.m + at + r * distance);
      v[r] = AlignedVector<T, N>::load(tile.v + at + r * distance);
    }
    const UpdateBranches branches = UpdateBranches::of(scalars);
    RADAM_UNROLL
    for (int r = 0; r < Vectors; ++r) {
      RADAM_UNROLL
      for (int i = 0; i < N; ++i) {
        T value = widen(p[r].value[i]);
        update_element<T>(value, widen(g[r].value[i]), m[r].value[i], v[r].value[i], scalars, branches);
        p[r].value[i] = Narrow<P>::from(value);
      }
      p[r].store(tile.p + at + r * distance);
      m[r].store(tile.m + at + r * distance);
      v[r].store(tile.v + at + r * distance);
    }
  }
};

// Second: zeros in the gradient. Threads share a tile as they do for the update, so that each clears what it has read
// itself: no thread waits for another.
struct Clear {
  template <int N, int Vectors, typename P, typename G>
  RADAM_HD void apply(const Tile<P, G>& tile, int at, int distance) const {
    RADAM_UNROLL
    for (int r = 0; r < Vectors; ++r) AlignedVector<G, N>{}.store(tile.g + at + r * distance);
  }
};

// How many neighbours one thread takes, so that the narrowest of its arrays fills an access, and how many such runs it
// has in flight: 8 elements (4 of float64, whose registers are twice as wide).
template <typename P, typename G>
struct ItemsPerThread {
  static constexpr int kVec = kAccess / (sizeof(P) < sizeof(G) ? sizeof(P) : sizeof(G));
  static constexpr int kInFlight = std::is_same_v<P, double> ? 4 : 8;
  static constexpr int kVectors = kInFlight / kVec;
};

// A whole tile whose arrays are all aligned: nothing but 16-byte accesses.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_full(const Tile<P, G>& tile, int thread, const Action& action) {
  using S = ItemsPerThread<P, G>;
  static_assert(kTile % (Threads * S::kInFlight) == 0, "every thread takes the same share of a whole tile");
  RADAM_UNROLL
  for (int at = 0; at < kTile; at += Threads * S::kInFlight) {
    action.template apply<S::kVec, S::kVectors>(tile, at + thread * S::kVec, Threads * S::kVec);
  }
}

// The last tile of a segment: 16-byte accesses up to its ragged end, and single elements there.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_tail(const Tile<P, G>& tile, int length, int thread, const Action& action) {
  constexpr int kVec = ItemsPerThread<P, G>::kVec;
  const int whole = length - length % kVec;
  for (int at = thread * kVec; at < whole; at += Threads * kVec) action.template apply<kVec, 1>(tile, at, 0);
  for (int at = whole + thread; at < length; at += Threads) action.template apply<1, 1>(tile, at, 0);
}

// Arrays that do not allow wider accesses: a view that starts between two of them.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_scalar(const Tile<P, G>& tile, int length, int thread, const Action& action) {
  for (int at = thread; at < length; at += Threads) action.template apply<1, 1>(tile, at, 0);
}

struct Offsets {
  int64_t param, grad;
};

// Where the element at a position in the moments' order lies in its parameter and its gradient.
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

// Parameter and gradient in different orders, or with gaps. `tile` has their first elements, not the tile's.
template <int Threads, typename Index, typename P, typename G, typename Action>
RADAM_HD void visit_strided(const Tile<P, G>& tile, int64_t offset, int length, const int64_t* strides, int thread,
                            const Action& action) {
  for (int at = thread; at < length; at += Threads) {
    const Offsets element = locate(strides, Index(offset + at));
    const Tile<P, G> one{tile.p + element.param, tile.g + element.grad, tile.m + at, tile.v + at};
    action.template apply<1, 1>(one, 0, 0);
  }
}

// A tile's place in its segment.
struct TileRange {
  int64_t offset;
  int length;
};

RADAM_HD TileRange range_of(const TileSegment& segment, uint32_t tile) {
  const int64_t offset = int64_t(tile - segment.first_tile) * kTile;
  return {offset, segment.length - offset < kTile ? int(segment.length - offset) : kTile};
}

// The way through a tile that its layout allows. `tile` has the parameter's and the gradient's first elements.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_tile(Tile<P, G> tile, const TileSegment& segment, const int64_t* strides, const TileRange& range,
                         int thread, const Action& action) {
  if (segment.strides != kPlain) {
    strides += segment.strides;
    if (segment.length <= INT32_MAX) {
      visit_strided<Threads, uint32_t>(tile, range.offset, range.length, strides, thread, action);
    } else {
      visit_strided<Threads, uint64_t>(tile, range.offset, range.length, strides, thread, action);
    }
    return;
  }
  const bool aligned = segment.aligned && is_aligned(tile.g);
  tile.p += range.offset;
  tile.g += range.offset;
  if (!aligned) {
    visit_scalar<Threads>(tile, range.length, thread, action);
  } else if (range.length < kTile) {
    visit_tail<Threads>(tile, range.length, thread, action);
  } else {
    visit_full<Threads>(tile, thread, action);
  }
}

// One thread's share of one tile. The only 64-bit arithmetic on indices is here, outside of the loops over elements.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void update_tile(const Arguments& arguments, uint32_t number, int32_t index, int thread) {
  using T = ComputeType<P>;
  const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
  const StepScalars<T> scalars = scalars_at<T>(arguments, segment.scalar_index);
  if (scalars.update_rule == UpdateRule::kSkipStep) return;
  const TileRange range = range_of(segment, number);
  Tile<P, G> tile;
  tile.p = static_cast<P*>(segment.param);
  tile.g = gradient_of<G>(arguments, index);
  tile.m = static_cast<T*>(arguments.exp_avg) + (segment.start + range.offset);
  tile.v = static_cast<T*>(arguments.exp_avg_sq) + (segment.start + range.offset);
  visit_tile<Threads>(tile, segment, arguments.strides, range, thread, Update<T>{scalars});
}

// Zeros in the gradient of a tile, whether its step was skipped or not.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void clear_tile(const Arguments& arguments, uint32_t number, int32_t index, int thread) {
  const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
  if (segment.overlapping) return;
  Tile<P, G> tile{};
  tile.g = gradient_of<G>(arguments, index);
  visit_tile<Threads>(tile, segment, arguments.strides, range_of(segment, number), thread, Clear{});
}

// The tiles that fall to a block, each with its segment. The next one's is looked up while this one's elements move.
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

// One thread's share of the whole launch. Gradients are cleared in a second walk: in one walk the two would share the
// registers, which the update has none of to spare, and the memory traffic is the same.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void step_tiles(const Arguments& arguments, const ThreadIndex& thread_index) {
  const int thread = int(thread_index.thread);
  for_each_tile(arguments, thread_index,
                [&](uint32_t tile, int32_t segment) { update_tile<Threads, P, G>(arguments, tile, segment, thread); });
  if (!arguments.zero_grads) return;
  for_each_tile(arguments, thread_index,
                [&](uint32_t tile, int32_t segment) { clear_tile<Threads, P, G>(arguments, tile, segment, thread); });
}

}  // namespace radam_fused
