// The walk over the flat index space that a GPU makes, once for the device and for the host, whose tests run these very
// lines block by block and thread by thread (tests/support/cuda_walk.cpp).
//
// A tile is a stretch of kTile elements of one segment. Blocks take tiles in turn, threads share a tile's elements; no
// thread needs another, so any number of either gives the same bits.
#pragma once

#include "cuda/launch_args.h"
#include "cuda/memory_access.h"
#include "numerics/grad_norm_order.h"
#include "numerics/radam_update.h"

namespace radam_fused {

struct Place {
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
RADAM_HD Row<T> row_at(const Arguments& arguments, uint32_t index) {
  if (arguments.rows == nullptr) return read_argument<Row<T>>(arguments.by_value + index * sizeof(Row<T>));
  struct Columns {
    double value[kRowColumns];
  };
  return Row<T>::from(look_up<Columns>(arguments.rows + size_t(index) * kRowColumns).value);
}

// The arrays of a tile, each from its own first element of the tile.
template <typename P, typename G>
struct Tile {
  using T = Computed<P>;
  P* p;
  G* g;
  T* m;
  T* v;
};

// What is done to runs of N neighbours each, `distance` elements apart. First: the update. All loads are on their way
// before the first is used.
template <typename T>
struct Update {
  const Row<T>& row;

  template <int N, int Runs, typename P, typename G>
  RADAM_HD void runs(const Tile<P, G>& tile, int at, int distance) const {
    Run<P, N> p[Runs];
    Run<G, N> g[Runs];
    Run<T, N> m[Runs];
    Run<T, N> v[Runs];
    RADAM_UNROLL
    for (int r = 0; r < Runs; ++r) {
      p[r] = Run<P, N>::load(tile.p + at + r * distance);
      g[r] = Run<G, N>::load(tile.g + at + r * distance);
      m[r] = Run<T, N>::load(tile.m + at + r * distance);
      v[r] = Run<T, N>::load(tile.v + at + r * distance);
    }
    const Lines lines = Lines::of(row);
    RADAM_UNROLL
    for (int r = 0; r < Runs; ++r) {
      RADAM_UNROLL
      for (int i = 0; i < N; ++i) {
        T value = widen(p[r].value[i]);
        update_element<T>(value, widen(g[r].value[i]), m[r].value[i], v[r].value[i], row, lines);
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
  template <int N, int Runs, typename P, typename G>
  RADAM_HD void runs(const Tile<P, G>& tile, int at, int distance) const {
    RADAM_UNROLL
    for (int r = 0; r < Runs; ++r) Run<G, N>{}.store(tile.g + at + r * distance);
  }
};

// How many neighbours one thread takes, so that the narrowest of its arrays fills an access, and how many such runs it
// has in flight: 8 elements (4 of float64, whose registers are twice as wide).
template <typename P, typename G>
struct Share {
  static constexpr int kRun = kAccess / (sizeof(P) < sizeof(G) ? sizeof(P) : sizeof(G));
  static constexpr int kInFlight = std::is_same_v<P, double> ? 4 : 8;
  static constexpr int kRuns = kInFlight / kRun;
};

// A whole tile whose arrays are all aligned: nothing but 16-byte accesses.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void walk_full(const Tile<P, G>& tile, int thread, const Action& action) {
  using S = Share<P, G>;
  static_assert(kTile % (Threads * S::kInFlight) == 0, "every thread takes the same share of a whole tile");
  RADAM_UNROLL
  for (int at = 0; at < kTile; at += Threads * S::kInFlight) {
    action.template runs<S::kRun, S::kRuns>(tile, at + thread * S::kRun, Threads * S::kRun);
  }
}

// The last tile of a segment: 16-byte accesses up to its ragged end, and single elements there.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void walk_ragged(const Tile<P, G>& tile, int length, int thread, const Action& action) {
  constexpr int kRun = Share<P, G>::kRun;
  const int whole = length - length % kRun;
  for (int at = thread * kRun; at < whole; at += Threads * kRun) action.template runs<kRun, 1>(tile, at, 0);
  for (int at = whole + thread; at < length; at += Threads) action.template runs<1, 1>(tile, at, 0);
}

// Arrays that do not allow wider accesses: a view that starts between two of them.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void walk_single(const Tile<P, G>& tile, int length, int thread, const Action& action) {
  for (int at = thread; at < length; at += Threads) action.template runs<1, 1>(tile, at, 0);
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
RADAM_HD void walk_strided(const Tile<P, G>& tile, int64_t offset, int length, const int64_t* strides, int thread,
                           const Action& action) {
  for (int at = thread; at < length; at += Threads) {
    const Offsets element = locate(strides, Index(offset + at));
    const Tile<P, G> one{tile.p + element.param, tile.g + element.grad, tile.m + at, tile.v + at};
    action.template runs<1, 1>(one, 0, 0);
  }
}

// A tile's place in its segment.
struct Stretch {
  int64_t offset;
  int length;
};

RADAM_HD Stretch stretch_of(const TileSegment& segment, uint32_t tile) {
  const int64_t offset = int64_t(tile - segment.first_tile) * kTile;
  return {offset, segment.length - offset < kTile ? int(segment.length - offset) : kTile};
}

// The way through a tile that its layout allows. `tile` has the parameter's and the gradient's first elements.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void walk_tile(Tile<P, G> tile, const TileSegment& segment, const int64_t* strides, const Stretch& stretch,
                        int thread, const Action& action) {
  if (segment.strides != kPlain) {
    strides += segment.strides;
    if (segment.length <= INT32_MAX) {
      walk_strided<Threads, uint32_t>(tile, stretch.offset, stretch.length, strides, thread, action);
    } else {
      walk_strided<Threads, uint64_t>(tile, stretch.offset, stretch.length, strides, thread, action);
    }
    return;
  }
  const bool aligned = segment.aligned && is_aligned(tile.g);
  tile.p += stretch.offset;
  tile.g += stretch.offset;
  if (!aligned) {
    walk_single<Threads>(tile, stretch.length, thread, action);
  } else if (stretch.length < kTile) {
    walk_ragged<Threads>(tile, stretch.length, thread, action);
  } else {
    walk_full<Threads>(tile, thread, action);
  }
}

// One thread's share of one tile. The only 64-bit arithmetic on indices is here, outside of the loops over elements.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void update_tile(const Arguments& arguments, uint32_t number, int32_t index, int thread) {
  using T = Computed<P>;
  const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
  const Row<T> row = row_at<T>(arguments, segment.row);
  if (row.direction == Direction::kSkip) return;
  const Stretch stretch = stretch_of(segment, number);
  Tile<P, G> tile;
  tile.p = static_cast<P*>(segment.param);
  tile.g = gradient_of<G>(arguments, index);
  tile.m = static_cast<T*>(arguments.exp_avg) + (segment.start + stretch.offset);
  tile.v = static_cast<T*>(arguments.exp_avg_sq) + (segment.start + stretch.offset);
  walk_tile<Threads>(tile, segment, arguments.strides, stretch, thread, Update<T>{row});
}

// Zeros in the gradient of a tile, whether its step was skipped or not.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void clear_tile(const Arguments& arguments, uint32_t number, int32_t index, int thread) {
  const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
  if (segment.overlapping) return;
  Tile<P, G> tile{};
  tile.g = gradient_of<G>(arguments, index);
  walk_tile<Threads>(tile, segment, arguments.strides, stretch_of(segment, number), thread, Clear{});
}

// The tiles that fall to a block, each with its segment. The next one's is looked up while this one's elements move.
template <typename Arguments, typename Share>
RADAM_HD void for_tiles(const Arguments& arguments, const Place& place, const Share& share) {
  uint32_t tile = place.block;
  if (tile >= arguments.tiles) return;
  int32_t segment = look_up<int32_t>(arguments.tile_segment + tile);
  while (true) {
    const uint32_t next = tile + place.blocks;
    const int32_t next_segment = next < arguments.tiles ? look_up<int32_t>(arguments.tile_segment + next) : 0;
    share(tile, segment);
    if (next >= arguments.tiles) return;
    tile = next;
    segment = next_segment;
  }
}

// One thread's share of the whole launch. Gradients are cleared in a second walk: in one walk the two would share the
// registers, which the update has none of to spare, and the memory traffic is the same.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void walk_tiles(const Arguments& arguments, const Place& place) {
  const int thread = int(place.thread);
  for_tiles(arguments, place,
            [&](uint32_t tile, int32_t segment) { update_tile<Threads, P, G>(arguments, tile, segment, thread); });
  if (!arguments.zero_grads) return;
  for_tiles(arguments, place,
            [&](uint32_t tile, int32_t segment) { clear_tile<Threads, P, G>(arguments, tile, segment, thread); });
}

}  // namespace radam_fused
