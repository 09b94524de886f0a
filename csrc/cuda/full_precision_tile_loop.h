// The tile loop for full-precision state. As csrc/cuda/tile_loop.h it is compiled for the device and for the host.
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/ordinary_update.h"
#include "cuda/tile_loop.h"

namespace radam_fused {

// The arrays of a tile, each from the first element of the tile on.
template <typename P, typename G>
struct Tile {
  using T = ComputeType<P>;
  P* p;
  G* g;
  T* m;
  T* v;
};

// An action on vectors of N consecutive elements, `distance` elements apart. The first action is the update. All loads
// are issued before the first result is used.
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
    if constexpr (std::is_same_v<T, float> && N * Vectors >= 8) {
      if (is_ordinary(scalars)) {
        update_all<N, Vectors>(p, g, m, v);
        return store<N, Vectors>(tile, at, distance, p, m, v);
      }
    }
    const UpdateBranches branches = UpdateBranches::of(scalars);
    RADAM_UNROLL
    for (int r = 0; r < Vectors; ++r) {
      RADAM_UNROLL
      for (int i = 0; i < N; ++i) {
        update_element(p[r].value[i], g[r].value[i], m[r].value[i], v[r].value[i], scalars, branches);
      }
    }
    store<N, Vectors>(tile, at, distance, p, m, v);
  }

 private:
  template <int N, int Vectors, typename P, typename G>
  static RADAM_HD void store(const Tile<P, G>& tile, int at, int distance, const AlignedVector<P, N>* p,
                             const AlignedVector<T, N>* m, const AlignedVector<T, N>* v) {
    RADAM_UNROLL
    for (int r = 0; r < Vectors; ++r) {
      p[r].store(tile.p + at + r * distance);
      m[r].store(tile.m + at + r * distance);
      v[r].store(tile.v + at + r * distance);
    }
  }

  template <int N, int Vectors, typename P, typename G>
  RADAM_HD void update_all(AlignedVector<P, N>* p, const AlignedVector<G, N>* g, AlignedVector<T, N>* m,
                           AlignedVector<T, N>* v) const {
    constexpr int kAll = N * Vectors;
    float x[kAll], gradient[kAll], first[kAll], second[kAll], root[kAll];
    RADAM_UNROLL
    for (int i = 0; i < kAll; ++i) {
      x[i] = widen_stored(p[i / N].value[i % N]);
      gradient[i] = widen_stored(g[i / N].value[i % N]);
      first[i] = m[i / N].value[i % N];
      second[i] = v[i / N].value[i % N];
    }
    update_ordinary<kAll>(x, gradient, first, second, root, scalars);
    const bool numbers = !std::is_same_v<P, float> && are_numbers<kAll>(x);
    if (numbers) {
      if constexpr (!std::is_same_v<P, float>) {
        RADAM_UNROLL
        for (int i = 0; i < kAll; i += 2) {
          const uint32_t pair = narrow_pair<P>(x[i], x[i + 1]);
          p[i / N].value[i % N].bits = uint16_t(pair);
          p[(i + 1) / N].value[(i + 1) % N].bits = uint16_t(pair >> 16);
        }
      }
    } else {
      RADAM_UNROLL
      for (int i = 0; i < kAll; ++i) p[i / N].value[i % N] = Narrow<P>::from(x[i]);
    }
    RADAM_UNROLL
    for (int i = 0; i < kAll; ++i) {
      m[i / N].value[i % N] = first[i];
      v[i / N].value[i % N] = second[i];
    }
  }
};

// The second action sets gradients to zero. Threads share a tile as they do for the update, so each thread clears what
// it has read itself, and no thread waits for another.
struct Clear {
  template <int N, int Vectors, typename P, typename G>
  RADAM_HD void apply(const Tile<P, G>& tile, int at, int distance) const {
    RADAM_UNROLL
    for (int r = 0; r < Vectors; ++r) AlignedVector<G, N>{}.store(tile.g + at + r * distance);
  }
};

// How many consecutive elements a thread takes, so that a vector of moments is one access: a warp's accesses then cover
// whole sectors of 32 bytes of every array. With vectors as long as 16 bytes of 16-bit elements a thread would have two
// accesses to its moments side by side, each of a warp's with half of every sector. And how many such vectors a thread
// has in flight: 8 elements (4 of float64, whose registers are twice as wide).
template <typename P, typename G>
struct ItemsPerThread {
  static constexpr int kVec = kAccess / int(sizeof(ComputeType<P>));
  static constexpr int kInFlight = std::is_same_v<P, double> ? 4 : 8;
  static constexpr int kVectors = kInFlight / kVec;
};

// A whole tile of aligned arrays: whole vectors alone.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_full(const Tile<P, G>& tile, int thread, const Action& action) {
  using S = ItemsPerThread<P, G>;
  static_assert(kTile % (Threads * S::kInFlight) == 0, "every thread takes as many elements of a whole tile");
  RADAM_UNROLL
  for (int at = 0; at < kTile; at += Threads * S::kInFlight) {
    action.template apply<S::kVec, S::kVectors>(tile, at + thread * S::kVec, Threads * S::kVec);
  }
}

// The last tile of a segment: whole vectors, and single elements at its end.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_tail(const Tile<P, G>& tile, int length, int thread, const Action& action) {
  constexpr int kVec = ItemsPerThread<P, G>::kVec;
  const int whole = length - length % kVec;
  for (int at = thread * kVec; at < whole; at += Threads * kVec) action.template apply<kVec, 1>(tile, at, 0);
  for (int at = whole + thread; at < length; at += Threads) action.template apply<1, 1>(tile, at, 0);
}

// Unaligned arrays: single elements, as many in flight as in a whole tile. One misaligned scalar in a bucket of DDP's
// makes the gradients of all parameters behind it misaligned.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_scalar(const Tile<P, G>& tile, int length, int thread, const Action& action) {
  constexpr int kInFlight = ItemsPerThread<P, G>::kInFlight;
  int at = thread;
  for (; at + (kInFlight - 1) * Threads < length; at += kInFlight * Threads) {
    action.template apply<1, kInFlight>(tile, at, Threads);
  }
  for (; at < length; at += Threads) action.template apply<1, 1>(tile, at, 0);
}

// Strided parameters or gradients. `tile` has their first elements, not those of the tile.
template <int Threads, typename Index, typename P, typename G, typename Action>
RADAM_HD void visit_strided(const Tile<P, G>& tile, int64_t offset, int length, const int64_t* strides, int thread,
                            const Action& action) {
  for (int at = thread; at < length; at += Threads) {
    const Offsets element = locate(strides, Index(offset + at));
    const Tile<P, G> one{tile.p + element.param, tile.g + element.grad, tile.m + at, tile.v + at};
    action.template apply<1, 1>(one, 0, 0);
  }
}

// Applies an action to a tile, with the widest accesses that its layout allows. `tile` has the first elements of
// parameter and gradient.
template <int Threads, typename P, typename G, typename Action>
RADAM_HD void visit_tile(Tile<P, G> tile, const TileSegment& segment, const int64_t* strides, const TileRange& range,
                         int thread, const Action& action) {
  if (segment.strides != kContiguous) {
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

// The update of one thread's elements of a tile. The 64-bit index arithmetic is here, outside of the loops over
// elements.
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

// Sets the gradient of a tile to zero, whether its step was skipped or not.
template <int Threads, typename P, typename G, typename Arguments>
RADAM_HD void clear_tile(const Arguments& arguments, uint32_t number, int32_t index, int thread) {
  const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
  if (segment.overlapping) return;
  Tile<P, G> tile{};
  tile.g = gradient_of<G>(arguments, index);
  visit_tile<Threads>(tile, segment, arguments.strides, range_of(segment, number), thread, Clear{});
}

// The work of one thread in a launch. Gradients are cleared in a second loop: in one loop both would share registers,
// of which the update has none to spare. Memory traffic is the same.
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
