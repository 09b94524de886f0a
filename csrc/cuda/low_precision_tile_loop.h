// The tile loop for low-precision state. As csrc/cuda/tile_loop.h it is compiled for the device and for the host.
//
// A tile is sixteen blocks of kBlockElements, which the warps of a thread block take in turn. There is a kernel per
// MomentFormat. The dtypes of parameter, gradient and master buffer are arguments of the launch, so that all threads
// take the same branches.
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/low_precision_args.h"
#include "cuda/low_precision_block.h"
#include "cuda/low_precision_whole_block.h"
#include "cuda/tile_loop.h"

namespace radam_fused {

// Whether the blocks of a segment that are whole are updated by LowPrecisionWholeBlock: the same for all threads.
RADAM_HD bool is_whole(const TileSegment& segment, const char* grad, const StepScalars<float>& scalars) {
  return segment.strides == kContiguous && segment.aligned && is_aligned(grad) &&
         segment.rng_offset % kRandsPerCall == 0 && is_ordinary(scalars);
}

// The whole blocks of a warp in a tile, from `at` on.
template <MomentFormat kMoments, int Stride, typename P, typename G, typename Arguments, typename Warp>
RADAM_HD void step_whole_blocks(const Arguments& arguments, const TileSegment& segment, char* grad,
                                const TileRange& range, const StepScalars<float>& scalars, const Warp& warp, int& at) {
  RADAM_ROLL
  for (; at + kBlockElements <= range.length; at += Stride) {
    const LowPrecisionWholeBlock<kMoments, P, G, Arguments> block(arguments, segment, grad, range.offset + at);
    block.update(warp, scalars);
  }
}

// The same by the dtypes of parameters and gradients, if they are a pair that has a loop of its own.
template <MomentFormat kMoments, int Stride, typename Arguments, typename Warp>
RADAM_HD void step_whole_blocks(const Arguments& arguments, const TileSegment& segment, char* grad,
                                const TileRange& range, const StepScalars<float>& scalars, const Warp& warp, int& at) {
  const int p = arguments.format.param_dtype, g = arguments.grad_dtype;
  if (p == kBFloat16 && g == kBFloat16) {
    step_whole_blocks<kMoments, Stride, bfloat16, bfloat16>(arguments, segment, grad, range, scalars, warp, at);
  } else if (p == kFloat32 && g == kFloat32) {
    step_whole_blocks<kMoments, Stride, float, float>(arguments, segment, grad, range, scalars, warp, at);
  } else if (p == kFloat16 && g == kFloat16) {
    step_whole_blocks<kMoments, Stride, float16, float16>(arguments, segment, grad, range, scalars, warp, at);
  } else if (p == kBFloat16 && g == kFloat32) {
    step_whole_blocks<kMoments, Stride, bfloat16, float>(arguments, segment, grad, range, scalars, warp, at);
  }
}

// The work of one warp in a launch: `thread_index.thread` is its number within the block. Blocks that are not whole
// look up their segment again, which frees its registers for them.
template <MomentFormat kMoments, int Warps, typename Arguments, typename Warp>
RADAM_HD void step_low_precision_tiles(const Arguments& arguments, const ThreadIndex& thread_index, const Warp& warp) {
  using Block = LowPrecisionBlock<kMoments, Arguments>;
  constexpr int kStride = Warps * kBlockElements;
  for_each_tile(arguments, thread_index, [&](uint32_t tile, int32_t index) RADAM_INLINE_LAMBDA {
    const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
    const TileRange range = range_of<kLowPrecisionTile>(segment, tile);
    char* grad = gradient_of<char>(arguments, index);
    int at = int(thread_index.thread) * kBlockElements;
    const StepScalars<float> scalars = scalars_at<float>(arguments, segment.scalar_index);
    if (is_whole(segment, grad, scalars)) {
      step_whole_blocks<kMoments, kStride>(arguments, segment, grad, range, scalars, warp, at);
    }
    RADAM_ROLL
    for (const int length = range.length; at < length; at += kStride) {
      const int32_t again = again_from_memory(index);
      const TileSegment segment = look_up<TileSegment>(arguments.segments + again);
      const int left = length - at;
      const Block block(arguments, segment, gradient_of<char>(arguments, again),
                        range_of<kLowPrecisionTile>(segment, tile).offset + at,
                        left < kBlockElements ? left : kBlockElements);
      block.update(warp);
    }
  });
}

}  // namespace radam_fused
