// The tile loop for low-precision state. As csrc/cuda/tile_loop.h it is compiled for the device and for the host.
//
// A tile is four blocks of kBlockElements. A warp takes a block at a time, eight consecutive elements per lane; with
// 8-bit moments it finds the block's largest magnitude between its phases. There is a kernel per MomentFormat. The
// dtypes of parameter, gradient and master buffer are arguments of the launch, so that all threads take the same
// branches.
#pragma once

#include "cuda/low_precision_args.h"
#include "cuda/low_precision_update.h"
#include "cuda/tile_loop.h"

namespace radam_fused {

constexpr int kWarp = 32;  // lanes
static_assert(kWarp * kVec == kBlockElements, "a warp covers a block");

// The state of a lane between phases.
struct Lane {
  Values values;
  Philox random;
};

// The elements of a block that a lane takes.
struct Span {
  int64_t first;  // in the segment
  int count;
  bool wide;  // whether there are eight, contiguous and aligned in every array
};

template <MomentFormat kMoments, typename Arguments>
class LowPrecisionBlock {
 public:
  // `offset`: where the block begins in its segment; `length`: the number of its elements.
  RADAM_HD LowPrecisionBlock(const Arguments& arguments, const TileSegment& segment, char* grad, int64_t offset,
                             int length)
      : arguments_(arguments), segment_(segment), grad_(grad), offset_(offset), length_(length) {}

  // The warp is passed by value, as its lanes' state belongs to one block.
  template <typename Warp>
  RADAM_HD void update(Warp warp) const {
    const bool skip = scalars_at<float>(arguments_, segment_.scalar_index).update_rule == UpdateRule::kSkipStep;
    const bool clear = arguments_.zero_grads && !segment_.overlapping;
    if (skip && !clear) return;
    warp([&](int number, Lane& lane) {
      const Span span = span_of(number);
      lane.values.largest = 0;
      if (span.count == 0) return;
      Elements elements = load(span, clear);
      if (!skip) step(elements, span, lane);
    });
    if (!kCodes || skip) return;
    const BlockScale sq_scale = RootCode::scale(warp.largest());
    warp([&](int number, Lane& lane) {
      const Span span = span_of(number);
      store(span, second_at(span.first), encode_roots(lane.values, sq_scale, lane.random));
      lane.values.largest = largest_of(lane.values.m, span.count);
    });
    const BlockScale scale = FirstCode::scale(warp.largest(), sq_scale);
    warp([&](int number, Lane& lane) {
      const Span span = span_of(number);
      store(span, first_at(span.first), encode_quotients(lane.values, scale, lane.random));
      if (number > 0) return;
      store_streaming(arguments_.scales + scale_index(), scale.scale);
      store_streaming(arguments_.sq_scales + scale_index(), sq_scale.scale);
    });
  }

 private:
  static constexpr bool kCodes = kMoments == MomentFormat::kInt8;
  static constexpr int kMomentItem = sizeof(MomentOf<kMoments>);

  RADAM_HD Span span_of(int lane) const {
    const int first = lane * kVec, left = length_ - first;
    const bool aligned = segment_.strides == kContiguous && segment_.aligned && is_aligned(grad_);
    return {offset_ + first, left < 0 ? 0 : left < kVec ? left : kVec, aligned && left >= kVec};
  }

  RADAM_HD int param_item() const { return int(item_size(arguments_.format.param_dtype)); }
  RADAM_HD int grad_item() const { return int(item_size(arguments_.grad_dtype)); }
  RADAM_HD int master_item() const { return int(arguments_.format.master_item()); }
  RADAM_HD bool has_master() const { return arguments_.format.master != MasterFormat::kNone; }

  // Where an element is stored: in parameter and gradient, and in the arrays of the state.
  RADAM_HD Offsets offsets_of(int64_t element) const {
    if (segment_.strides == kContiguous) return {element, element};
    const int64_t* strides = arguments_.strides + segment_.strides;
    return segment_.length <= INT32_MAX ? locate(strides, uint32_t(element)) : locate(strides, uint64_t(element));
  }
  RADAM_HD char* param_at(int64_t place) const { return static_cast<char*>(segment_.param) + place * param_item(); }
  RADAM_HD char* grad_at(int64_t place) const { return grad_ + place * grad_item(); }
  RADAM_HD char* state_at(void* state, int64_t element, int item) const {
    return static_cast<char*>(state) + (segment_.start + element) * item;
  }
  RADAM_HD char* first_at(int64_t element) const { return state_at(arguments_.exp_avg, element, kMomentItem); }
  RADAM_HD char* second_at(int64_t element) const { return state_at(arguments_.exp_avg_sq, element, kMomentItem); }
  RADAM_HD char* master_at(int64_t element) const { return state_at(arguments_.master, element, master_item()); }
  RADAM_HD int64_t scale_index() const { return (segment_.start + offset_) / kBlockElements; }

  // All loads are issued before the first result is used. The thread that has read a gradient clears it, so no thread
  // waits for another.
  RADAM_HD Elements load(const Span& span, bool clear) const {
    Elements in;
    if constexpr (kCodes) {
      in.scale = load_streaming(arguments_.scales + scale_index());
      in.sq_scale = load_streaming(arguments_.sq_scales + scale_index());
    }
    if (span.wide) {
      in.p = Packed::load(param_at(span.first), param_item());
      in.g = Packed::load(grad_at(span.first), grad_item());
      in.m = Packed::load(first_at(span.first), kMomentItem);
      in.v = Packed::load(second_at(span.first), kMomentItem);
      if (has_master()) in.master = Packed::load(master_at(span.first), master_item());
      if (clear) Packed{}.store(grad_at(span.first), grad_item());
      return in;
    }
    // The state has a loop of its own, to leave registers to the divisions of the first one.
    const int64_t last = span.first + span.count - 1;
    RADAM_ROLL
    for (int64_t element = last; element >= span.first; --element) {
      const Offsets place = offsets_of(element);
      in.p.push(load_element(param_at(place.param), param_item()), param_item());
      in.g.push(load_element(grad_at(place.grad), grad_item()), grad_item());
      if (clear) store_element(grad_at(place.grad), 0, grad_item());
    }
    RADAM_ROLL
    for (int64_t element = last; element >= span.first; --element) {
      in.m.push(load_element(first_at(element), kMomentItem), kMomentItem);
      in.v.push(load_element(second_at(element), kMomentItem), kMomentItem);
      if (has_master()) in.master.push(load_element(master_at(element), master_item()), master_item());
    }
    return in;
  }

  // Stores consecutive elements of a moment.
  RADAM_HD void store(const Span& span, char* to, Packed packed) const {
    if (span.wide) return packed.store(to, kMomentItem);
    RADAM_ROLL
    for (int i = 0; i < span.count; ++i) store_element(to + i * kMomentItem, packed.pop(kMomentItem), kMomentItem);
  }

  RADAM_HD void store_parameter(const Span& span, Elements out) const {
    if (span.wide) {
      out.p.store(param_at(span.first), param_item());
      if (has_master()) out.master.store(master_at(span.first), master_item());
      return;
    }
    RADAM_ROLL
    for (int64_t element = span.first; element < span.first + span.count; ++element) {
      store_element(param_at(offsets_of(element).param), out.p.pop(param_item()), param_item());
      if (has_master()) store_element(master_at(element), out.master.pop(master_item()), master_item());
    }
  }

  RADAM_HD Philox random_for(const Span& span, const StepScalars<float>& scalars, uint32_t stream) const {
    return philox_from(uint64_t(segment_.rng_offset + span.first), scalars.step, stream, scalars.seed);
  }

  // The whole update, except for 8-bit codes, which need the scale of the block. The scalars are read here, where their
  // registers do not add to those of the loads.
  RADAM_HD void step(Elements& elements, const Span& span, Lane& lane) const {
    const StateFormat& format = arguments_.format;
    const StepScalars<float> scalars = scalars_at<float>(arguments_, segment_.scalar_index);
    float g[kVec];
    widen_all(g, elements.g, arguments_.grad_dtype);
    read_parameter(lane.values.x, elements, format);
    read_moments<kMoments>(lane.values, elements);
    step_all(lane.values, g, scalars, format.master);
    Philox random{};
    if (format.stochastic) random = random_for(span, scalars, kParamStream);
    write_parameter(elements, lane.values.x, format, scalars.update_rule, random);
    store_parameter(span, elements);
    if constexpr (kMoments != MomentFormat::kFloat32) lane.random = random_for(span, scalars, kMomentStream);
    if constexpr (kCodes) {
      take_roots(lane.values);
      lane.values.largest = largest_of(lane.values.v, span.count);
    } else {
      narrow_moments<kMoments>(elements, lane.values, lane.random);
      store(span, first_at(span.first), elements.m);
      store(span, second_at(span.first), elements.v);
    }
  }

  const Arguments& arguments_;
  const TileSegment& segment_;
  char* grad_;
  int64_t offset_;
  int length_;
};

// The work of one warp in a launch: `thread_index.thread` is its number within the block.
template <MomentFormat kMoments, int Warps, typename Arguments, typename Warp>
RADAM_HD void step_low_precision_tiles(const Arguments& arguments, const ThreadIndex& thread_index, const Warp& warp) {
  for_each_tile(arguments, thread_index, [&](uint32_t tile, int32_t index) {
    const TileSegment segment = look_up<TileSegment>(arguments.segments + index);
    const TileRange range = range_of(segment, tile);
    char* grad = gradient_of<char>(arguments, index);
    RADAM_UNROLL
    for (int turn = 0; turn < kTile / (Warps * kBlockElements); ++turn) {
      const int at = (turn * Warps + int(thread_index.thread)) * kBlockElements;
      const int left = range.length - at;
      if (left <= 0) continue;
      const LowPrecisionBlock<kMoments, Arguments> block(arguments, segment, grad, range.offset + at,
                                                         left < kBlockElements ? left : kBlockElements);
      block.update(warp);
    }
  });
}

}  // namespace radam_fused
