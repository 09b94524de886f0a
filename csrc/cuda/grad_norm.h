// The sums of the squares of gradients, in an order of additions that does not depend on the launch
// (numerics/grad_norm_order.h): a partial sum adds the i-th elements of its tiles in lane i, run by
// run, then the lanes by tree_reduce.
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/tile_loop.h"
#include "numerics/grad_norm_order.h"
#include "numerics/thread_group.h"

namespace radam_fused {

// The sums of one thread's lanes: kVectors vectors of kVec lanes, as wide as an access, kDistance lanes apart.
template <typename G>
struct ThreadSums {
  static constexpr int kVec = kAccess / int(sizeof(G));
  static constexpr int kVectors = kLanes / (kThreads * kVec);
  static constexpr int kDistance = kThreads * kVec;
  static constexpr int kTilesInFlight = kAccess / int(sizeof(G));  // 128 bytes per thread

  using Run = RunType<G>;

  double value[kVectors][kVec] = {};
  Run run[kVectors][kVec] = {};
  int in_run = 0;  // tiles

  static RADAM_HD int lane(int thread, int vector, int i) { return vector * kDistance + thread * kVec + i; }

  RADAM_HD void count(int tiles) {
    if constexpr (kRun<G> == INT32_MAX) return;  // the float64 lanes' registers are all in use
    in_run += tiles;
    if (in_run == kRun<G>) finish_run();
  }

  RADAM_HD void finish_run() {
    in_run = 0;
    RADAM_UNROLL
    for (int r = 0; r < kVectors; ++r) {
      RADAM_UNROLL
      for (int i = 0; i < kVec; ++i) {
        value[r][i] += double(run[r][i]);
        run[r][i] = Run(0);
      }
    }
  }

  // Adds whole tiles of one run that follow one another in memory: all loads are issued before the first is used.
  template <int Tiles>
  RADAM_HD void add_full(const G* tile, int thread) {
    AlignedVector<G, kVec> g[Tiles][kVectors];
    RADAM_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      RADAM_UNROLL
      for (int r = 0; r < kVectors; ++r)
        g[t][r] = AlignedVector<G, kVec>::load_cached(tile + t * kTile + lane(thread, r, 0));
    }
    RADAM_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      RADAM_UNROLL
      for (int r = 0; r < kVectors; ++r) {
        RADAM_UNROLL
        for (int i = 0; i < kVec; ++i) run[r][i] += square(widen_stored(g[t][r].value[i]));
      }
    }
    count(Tiles);
  }

  // Adds a tile element by element: `element(i)` reads that of lane i, for i below `length`.
  template <typename Element>
  RADAM_HD void add_single(int length, int thread, const Element& element) {
    RADAM_UNROLL
    for (int r = 0; r < kVectors; ++r) {
      RADAM_UNROLL
      for (int i = 0; i < kVec; ++i) {
        const int at = lane(thread, r, i);
        if (at < length) run[r][i] += square(widen_stored(element(at)));
      }
    }
    count(1);
  }
};

// Adds the tiles from `begin` up to `end` of one segment.
template <typename G>
RADAM_HD void add_tiles(ThreadSums<G>& sums, const TileSegment& segment, const G* grad, const int64_t* strides,
                        uint32_t begin, uint32_t end, int thread) {
  constexpr uint32_t kInFlight = ThreadSums<G>::kTilesInFlight;
  if (segment.strides == kContiguous && is_aligned(grad)) {
    const auto whole = uint32_t(segment.first_tile + segment.length / kTile);
    const uint32_t full = end < whole ? end : whole;
    const G* tile = grad + range_of(segment, begin).offset;
    while (begin < full) {
      const bool in_one_run = kRun<G> % kInFlight != 0 || sums.in_run % kInFlight == 0;
      if (in_one_run && begin + kInFlight <= full) {
        sums.template add_full<kInFlight>(tile, thread);
        begin += kInFlight;
        tile += kInFlight * kTile;
      } else {
        sums.template add_full<1>(tile, thread);
        ++begin;
        tile += kTile;
      }
    }
  }
  for (; begin < end; ++begin) {
    const TileRange range = range_of(segment, begin);
    if (segment.strides == kContiguous) {
      const G* tile = grad + range.offset;
      sums.add_single(range.length, thread, [&](int at) { return tile[at]; });
    } else {
      const int64_t* dims = strides + segment.strides;
      const bool small = segment.length <= INT32_MAX;
      sums.add_single(range.length, thread, [&](int at) {
        const int64_t position = range.offset + at;
        return grad[(small ? locate(dims, uint32_t(position)) : locate(dims, uint64_t(position))).grad];
      });
    }
  }
}

// One thread's sums for one partial sum.
template <typename G, typename Arguments>
RADAM_HD ThreadSums<G> sums_of(const Arguments& arguments, int sum, int thread) {
  ThreadSums<G> sums;
  auto tile = uint32_t(first_tile_of(sum, arguments.tiles));
  const auto end = uint32_t(first_tile_of(sum + 1, arguments.tiles));
  if (tile == end) return sums;
  for (int32_t index = look_up<int32_t>(arguments.tile_segment + tile); tile < end; ++index) {
    const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
    const int64_t last = segment.first_tile + (segment.length + kTile - 1) / kTile;
    const uint32_t until = last < end ? uint32_t(last) : end;
    add_tiles<G>(sums, segment, gradient_of<const G>(arguments, index), arguments.strides, tile, until, thread);
    tile = until;
  }
  sums.finish_run();
  return sums;
}

// Computes the partial sums of one block. `shared` has room for kLanes values.
template <typename G, typename Arguments, typename ThreadGroup>
RADAM_HD void sum_grad_norm(const Arguments& arguments, uint32_t block, uint32_t blocks, double* shared,
                            const ThreadGroup& threads) {
  static_assert(ThreadGroup::kThreads == kThreads, "every lane belongs to one thread");
  for (uint32_t sum = block; sum < kPartialSums; sum += blocks) {
    threads([&](int thread) {
      const ThreadSums<G> sums = sums_of<G>(arguments, int(sum), thread);
      for (int r = 0; r < ThreadSums<G>::kVectors; ++r) {
        for (int i = 0; i < ThreadSums<G>::kVec; ++i) shared[ThreadSums<G>::lane(thread, r, i)] = sums.value[r][i];
      }
    });
    tree_reduce(shared, kLanes, threads);
    threads([&](int thread) {
      if (thread == 0) arguments.sums[sum] = shared[0];
    });
  }
}

}  // namespace radam_fused
