// What the kernels on the host have in common: how a launch is made, and tensors as ctypes passes them.
#pragma once

#include "cuda/grad_norm.h"
#include "cuda/launch_table.h"
#include "cuda/low_precision_tile_loop.h"

namespace radam_fused {

// None of it may change a bit, but for the thread that a negative control leaves out.
struct Geometry {
  int64_t blocks;
  int64_t threads;     // 32 or 128, where the kernel allows a choice
  int64_t backwards;   // last block and last thread first
  int64_t in_tables;   // rows and gradients in tables, as when they are too many to be passed by value
  int64_t skipped;     // block * threads + thread, or -1
  int64_t only_block;  // or -1
};

// A block whose threads come one after the other, each part's barrier being where all have done it.
template <int Threads>
struct InTurn {
  static constexpr int kThreads = Threads;
  const Geometry& geometry;
  int64_t block;

  template <typename Phase>
  void operator()(const Phase& phase) const {
    for (int i = 0; i < Threads; ++i) {
      const int thread = geometry.backwards ? Threads - 1 - i : i;
      if (block * Threads + thread != geometry.skipped) phase(thread);
    }
  }
};

// A warp whose lanes come one after the other, each phase done by all before the next.
struct WarpInTurn {
  const Geometry* geometry;
  int64_t first;  // its first thread, counted over all blocks
  Lane lanes[kWarp] = {};

  WarpInTurn for_block() const { return {geometry, first}; }

  template <typename Phase>
  void operator()(const Phase& phase) {
    for (int i = 0; i < kWarp; ++i) {
      const int lane = geometry->backwards ? kWarp - 1 - i : i;
      if (first + lane != geometry->skipped) phase(lane, lanes[lane]);
    }
  }

  uint32_t largest() const {
    uint32_t largest = 0;
    for (const Lane& lane : lanes) largest = std::max(largest, lane.values.largest);
    return largest;
  }
};

// A table where a launch finds it, as aligned as device memory would be.
class PlacedTable {
 public:
  PlacedTable(const SegmentTable& table, TileTables& tables) : memory_(table.bytes() / 8 + 8) {
    auto* memory = reinterpret_cast<unsigned char*>((uintptr_t(memory_.data()) + 15) / 16 * 16);
    table.write(memory);
    table.point(memory, tables);
  }

 private:
  std::vector<uint64_t> memory_;
};

// A bucket's state, as a step is given it.
struct HostState {
  StateBuffers buffers;
  int64_t param_dtype, moments, master, stochastic;

  StateFormat format() const {
    return {int(param_dtype), MomentFormat(moments), MasterFormat(master), stochastic != 0};
  }
};

// One launch over segments whose gradients have one dtype.
struct HostLaunch {
  const StateFormat format;
  const StateBuffers& buffers;
  const double* scalars;
  const std::vector<unsigned char>& rounded;
  const bool zero_grads;
  const Geometry& geometry;

  // Makes the arguments as the operator does, and calls `run` with them.
  template <typename Arguments, typename Run>
  void start(const std::vector<Segment>& segments, int grad_dtype, const Run& run) const {
    LaunchBuilder builder(flat_buffers(format, buffers), tile_of(format));
    for (const Segment& segment : segments) {
      if (segment.grad_dtype == grad_dtype) builder.add(segment);
    }
    Arguments arguments{};
    const PlacedTable table(builder.table, arguments);
    set_state(format, buffers, grad_dtype, arguments);
    arguments.zero_grads = zero_grads;
    const size_t capacity = geometry.in_tables ? 0 : Arguments::kCapacity;
    const ByValue passed = pass_by_value(rounded, builder.grads, capacity, arguments);
    if (!passed.scalars) arguments.scalars = scalars;
    if (!passed.grads) arguments.grads = reinterpret_cast<const unsigned char*>(builder.grads.data());
    run(arguments);
  }
};

// The tile loop over low-precision state (cuda_host_low_precision.cpp).
void run_low_precision(const Small<LowPrecisionTables>& arguments, const Geometry& geometry);

}  // namespace radam_fused

// A parameter and its gradient, or a gradient alone.
struct HostTensor {
  void* param;
  void* grad;
  int64_t start, scalar_index, grad_dtype, dim, rng_offset;
  const int64_t *size, *param_stride, *grad_stride;

  int64_t numel() const {
    int64_t product = 1;
    for (int64_t d = 0; d < dim; ++d) product *= size[d];
    return product;
  }
};
