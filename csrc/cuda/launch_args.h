// What a kernel is given: tables of segments and tiles, and the addresses that change from step to step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace radam_fused {

constexpr int kThreads = 128;   // a block
constexpr int32_t kPlain = -1;  // for TileSegment::strides

// A segment as it lies in the table on the device. It stays from step to step; the gradient's address does not.
struct alignas(16) TileSegment {
  void* param;
  int64_t start;  // of its moments in the flat buffers, in elements
  int64_t length;
  uint32_t first_tile;
  uint32_t scalar_index;
  // Where its strides are described: the number of dimensions, then size, parameter stride and gradient stride of each,
  // inner dimension first. kPlain when parameter, gradient and moments share one dense order.
  int32_t strides;
  uint16_t aligned;  // whether parameter and state allow 16-byte accesses
  uint16_t
      overlapping;     // whether elements of the gradient share memory, so that none may be cleared before all are read
  int64_t rng_offset;  // the place that its first element's random numbers are drawn for
};

// What every walk is given. The segments and their tiles stay from step to step; the addresses of the gradients, one a
// segment, change, and go by value while they fit.
struct alignas(16) TileTables {
  const TileSegment* segments;
  const int64_t* strides;
  const int32_t* tile_segment;  // which segment each tile belongs to
  const unsigned char* grads;   // in device memory, or null: in by_value, grads_at bytes in
  uint32_t grads_at;
  uint32_t tiles;
};

// What a step is given besides. Rows that the host has made go by value too while they fit, already rounded.
struct alignas(16) StepTables : TileTables {
  void* exp_avg;
  void* exp_avg_sq;
  const double* scalars;  // float64 in device memory, or null: rounded, at the beginning of by_value
  uint32_t zero_grads;
};

struct alignas(16) GradNormTables : TileTables {
  double* sums;  // written: kPartialSums of them
};

// A kernel's only argument. 4 KB are what every CUDA allows, 32,764 bytes what CUDA 12.1 does from sm_70 on.
template <typename Tables, int MemorySpan>
struct LaunchArguments : Tables {
  static constexpr size_t kCapacity = MemorySpan - sizeof(Tables);
  alignas(16) unsigned char by_value[kCapacity];
};

template <typename Tables>
using Small = LaunchArguments<Tables, 4096>;
template <typename Tables>
using Large = LaunchArguments<Tables, 32752>;

}  // namespace radam_fused
