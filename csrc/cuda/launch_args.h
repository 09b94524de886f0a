// The arguments of kernels: tables of segments and tiles, and addresses that change from step to step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace radam_fused {

constexpr int kThreads = 128;        // per block
constexpr int32_t kContiguous = -1;  // for TileSegment::strides

// A segment in the table on the device. It stays the same from step to step; the gradient's address does not.
struct alignas(16) TileSegment {
  void* param;
  int64_t start;  // of its moments in the flat buffers, in elements
  int64_t length;
  uint32_t first_tile;
  uint32_t scalar_index;
  // Index of its strides: the number of dimensions, then size, parameter stride and gradient stride of each, innermost
  // dimension first. kContiguous if parameter, gradient and moments share one dense order.
  int32_t strides;
  uint16_t aligned;      // whether parameter and state allow 16-byte accesses
  uint16_t overlapping;  // whether elements of the gradient share memory: then no thread may clear one
  int64_t rng_offset;    // the offset of its first element's random numbers
};

// What every kernel over tiles needs. Segments and tiles stay the same from step to step. The addresses of the
// gradients, one per segment, change, and are passed by value if they fit.
struct alignas(16) TileTables {
  const TileSegment* segments;
  const int64_t* strides;
  const int32_t* tile_segment;  // which segment each tile belongs to
  const unsigned char* grads;   // in device memory; or null: by_value + grads_at
  uint32_t grads_at;
  uint32_t tiles;
};

// What a step needs besides. Scalars that the host has computed are passed by value too if they fit, rounded to the
// dtype of the arithmetic.
struct alignas(16) StepTables : TileTables {
  void* exp_avg;
  void* exp_avg_sq;
  const double* scalars;  // float64 in device memory; or null: rounded, at by_value
  uint32_t zero_grads;
};

struct alignas(16) GradNormTables : TileTables {
  double* sums;  // written: kPartialSums of them
};

// The only argument of a kernel. All CUDA versions allow 4 KB; CUDA 12.1 and later allow 32,764 bytes from sm_70 on.
template <typename Tables, int Bytes>
struct LaunchArguments : Tables {
  static constexpr size_t kCapacity = Bytes - sizeof(Tables);
  alignas(16) unsigned char by_value[kCapacity];
};

template <typename Tables>
using Small = LaunchArguments<Tables, 4096>;
template <typename Tables>
using Large = LaunchArguments<Tables, 32752>;

}  // namespace radam_fused
