// The update of a block of kBlockElements by one warp, eight consecutive elements per lane. With 8-bit moments the warp
// finds the block's largest magnitude between its phases.
#pragma once

#include "cuda/low_precision_stored_block.h"
#include "cuda/low_precision_update.h"
#include "cuda/tile_loop.h"

namespace radam_fused {

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
      : block_{arguments, segment, grad, offset}, length_(length) {}

  template <typename Warp>
  RADAM_HD void update(const Warp& warps) const {
    Warp warp = warps.for_block();
    const bool skip =
        scalars_at<float>(block_.arguments, block_.segment.scalar_index).update_rule == UpdateRule::kSkipStep;
    const bool clear = block_.arguments.zero_grads && !block_.segment.overlapping;
    if (skip && !clear) return;
    warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
      const Span span = span_of(number);
      lane.values.largest = 0;
      if (span.count == 0) return;
      Elements elements = load(span, clear);
      if (!skip) step(elements, span, lane);
    });
    if (!kCodes || skip) return;
    const BlockScale sq_scale = RootCode::scale(warp.largest());
    warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
      const Span span = span_of(number);
      store(span, block_.second_at(span.first), encode_roots(lane.values, sq_scale, lane.random));
      lane.values.largest = largest_of(lane.values.m, span.count);
    });
    const BlockScale scale = FirstCode::scale(warp.largest(), sq_scale);
    warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
      const Span span = span_of(number);
      store(span, block_.first_at(span.first), encode_quotients(lane.values, scale, lane.random));
      block_.store_scales(number, scale, sq_scale);
    });
  }

 private:
  using Stored = StoredBlock<kMoments, Arguments>;
  static constexpr bool kCodes = Stored::kCodes;
  static constexpr int kMomentItem = Stored::kMomentItem;

  RADAM_HD Span span_of(int lane) const {
    const int first = lane * kVec, left = length_ - first;
    const bool aligned = block_.segment.strides == kContiguous && block_.segment.aligned && is_aligned(block_.grad);
    return {block_.offset + first, left < 0 ? 0 : left < kVec ? left : kVec, aligned && left >= kVec};
  }

  // Where an element is in parameter and gradient.
  RADAM_HD Offsets offsets_of(int64_t element) const {
    if (block_.segment.strides == kContiguous) return {element, element};
    const int64_t* strides = block_.arguments.strides + block_.segment.strides;
    return block_.segment.length <= INT32_MAX ? locate(strides, uint32_t(element)) : locate(strides, uint64_t(element));
  }

  // All loads are issued before the first result is used. The thread that has read a gradient clears it, so no thread
  // waits for another.
  RADAM_HD Elements load(const Span& span, bool clear) const {
    Elements in;
    if constexpr (kCodes) {
      in.scale = load_streaming(block_.arguments.scales + block_.scale_index());
      in.sq_scale = load_streaming(block_.arguments.sq_scales + block_.scale_index());
    }
    if (span.wide) {
      in.p = Packed::load(block_.param_at(span.first), block_.param_item());
      in.g = Packed::load(block_.grad_at(span.first), block_.grad_item());
      in.m = Packed::load(block_.first_at(span.first), kMomentItem);
      in.v = Packed::load(block_.second_at(span.first), kMomentItem);
      if (block_.has_master()) in.master = Packed::load(block_.master_at(span.first), block_.master_item());
      if (clear) Packed{}.store(block_.grad_at(span.first), block_.grad_item());
      return in;
    }
    // The state has a loop of its own, to leave registers to the divisions of the first one.
    const int64_t last = span.first + span.count - 1;
    RADAM_ROLL
    for (int64_t element = last; element >= span.first; --element) {
      const Offsets place = offsets_of(element);
      in.p.push(load_element(block_.param_at(place.param), block_.param_item()), block_.param_item());
      in.g.push(load_element(block_.grad_at(place.grad), block_.grad_item()), block_.grad_item());
      if (clear) store_element(block_.grad_at(place.grad), 0, block_.grad_item());
    }
    RADAM_ROLL
    for (int64_t element = last; element >= span.first; --element) {
      in.m.push(load_element(block_.first_at(element), kMomentItem), kMomentItem);
      in.v.push(load_element(block_.second_at(element), kMomentItem), kMomentItem);
      if (block_.has_master())
        in.master.push(load_element(block_.master_at(element), block_.master_item()), block_.master_item());
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
      out.p.store(block_.param_at(span.first), block_.param_item());
      if (block_.has_master()) out.master.store(block_.master_at(span.first), block_.master_item());
      return;
    }
    RADAM_ROLL
    for (int64_t element = span.first; element < span.first + span.count; ++element) {
      store_element(block_.param_at(offsets_of(element).param), out.p.pop(block_.param_item()), block_.param_item());
      if (block_.has_master())
        store_element(block_.master_at(element), out.master.pop(block_.master_item()), block_.master_item());
    }
  }

  RADAM_HD Philox random_for(const Span& span, const StepScalars<float>& scalars, uint32_t stream) const {
    return philox_from(uint64_t(block_.segment.rng_offset + span.first), scalars.step, stream, scalars.seed);
  }

  // The whole update, except for 8-bit codes, which need the scale of the block. The scalars are read here, where their
  // registers do not add to those of the loads.
  RADAM_HD void step(Elements& elements, const Span& span, Lane& lane) const {
    const StateFormat& format = block_.arguments.format;
    const StepScalars<float> scalars = scalars_at<float>(block_.arguments, block_.segment.scalar_index);
    float g[kVec];
    widen_all(g, elements.g, block_.arguments.grad_dtype);
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
      store(span, block_.first_at(span.first), elements.m);
      store(span, block_.second_at(span.first), elements.v);
    }
  }

  const Stored block_;
  const int length_;
};

}  // namespace radam_fused
