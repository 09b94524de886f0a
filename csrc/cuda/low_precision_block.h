// The update of a block of kBlockElements by one warp, eight consecutive elements per lane. With 8-bit moments the warp
// finds the block's largest magnitude between its phases.
#pragma once

#include "cuda/low_precision_args.h"
#include "cuda/low_precision_update.h"
#include "cuda/low_precision_whole_block.h"
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

  template <typename Warp>
  RADAM_HD void update(const Warp& warps) const {
    Warp warp = warps.for_block();
    const bool skip = scalars_at<float>(arguments_, segment_.scalar_index).update_rule == UpdateRule::kSkipStep;
    const bool clear = arguments_.zero_grads && !segment_.overlapping;
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
      store(span, second_at(span.first), encode_roots(lane.values, sq_scale, lane.random));
      lane.values.largest = largest_of(lane.values.m, span.count);
    });
    const BlockScale scale = FirstCode::scale(warp.largest(), sq_scale);
    warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
      const Span span = span_of(number);
      store(span, first_at(span.first), encode_quotients(lane.values, scale, lane.random));
      store_scales(number, scale, sq_scale);
    });
  }

  // A whole block of a segment for which `is_whole` is true.
  template <typename P, typename G, typename Warp>
  RADAM_HD void update_whole(const Warp& warps, const StepScalars<float>& scalars) const {
    Warp warp = warps.for_block();
    keep_apart<P, G>();
    warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
      const int64_t first = offset_ + number * kVec;
      Elements elements = load_whole<P, G>(first);
      step_whole_lane<P, G>(elements, first, scalars, lane);
    });
    if constexpr (kCodes) {
      const BlockScale sq_scale = RootCode::scale(warp.largest());
      warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
        encode_whole_roots(lane.values, sq_scale, lane.random).store(second_at(offset_ + number * kVec), kMomentItem);
        lane.values.largest = largest_of(lane.values.m, kVec);
      });
      const BlockScale scale = FirstCode::scale(warp.largest(), sq_scale);
      warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
        encode_whole_quotients(lane.values, scale, lane.random).store(first_at(offset_ + number * kVec), kMomentItem);
        store_scales(number, scale, sq_scale);
      });
    }
    keep_apart<P, G>();
  }

 private:
  static constexpr bool kCodes = kMoments == MomentFormat::kInt8;
  static constexpr int kMomentItem = sizeof(MomentOf<kMoments>);

  // nvcc would merge what the instantiations have in common, and test the dtypes again in between.
  template <typename P, typename G>
  static RADAM_HD void keep_apart() {
#if defined(__CUDA_ARCH__)
    constexpr int kPair = 3 * (std::is_same_v<P, float>      ? 0
                               : std::is_same_v<P, bfloat16> ? 1
                                                             : 2) +
                          (std::is_same_v<G, float>      ? 0
                           : std::is_same_v<G, bfloat16> ? 1
                                                         : 2);
    asm volatile("// pair of dtypes %0" ::"n"(kPair));
#endif
  }

  template <typename P, typename G>
  RADAM_HD Elements load_whole(int64_t first) const {
    Elements in;
    if constexpr (kCodes) {
      in.scale = load_streaming(arguments_.scales + scale_index());
      in.sq_scale = load_streaming(arguments_.sq_scales + scale_index());
    }
    in.p = Packed::load(static_cast<char*>(segment_.param) + first * int(sizeof(P)), sizeof(P));
    in.g = Packed::load(grad_ + first * int(sizeof(G)), sizeof(G));
    in.m = Packed::load(first_at(first), kMomentItem);
    in.v = Packed::load(second_at(first), kMomentItem);
    if (!std::is_same_v<P, float> && has_master()) in.master = Packed::load(master_at(first), master_item());
    if (arguments_.zero_grads && !segment_.overlapping) {
      Packed{}.store(grad_ + first * int(sizeof(G)), sizeof(G));
    }
    return in;
  }

  template <typename P, typename G>
  RADAM_HD void step_whole_lane(Elements& elements, int64_t first, const StepScalars<float>& scalars,
                                Lane& lane) const {
    const StateFormat& format = arguments_.format;
    const auto group = uint64_t(segment_.rng_offset + first) / kRandsPerCall;
    float g[kVec], root[kVec];
    widen_whole<G>(g, elements.g);
    if (std::is_same_v<P, float> || format.master == MasterFormat::kNone) {
      widen_whole<P>(lane.values.x, elements.p);
    } else {
      read_parameter(lane.values.x, elements, format);
    }
    read_whole_moments<kMoments>(lane.values, elements);
    const bool ordinary = update_ordinary<kVec>(lane.values.x, g, lane.values.m, lane.values.v, root, scalars,
                                                !std::is_same_v<P, float> && format.master == MasterFormat::kKahan);
    Philox random{};
    if (!std::is_same_v<P, float> && format.stochastic)
      random = philox(group, scalars.step, kParamStream, scalars.seed);
    write_whole_parameter<P>(elements, lane.values.x, format, random);
    elements.p.store(static_cast<char*>(segment_.param) + first * int(sizeof(P)), sizeof(P));
    if (!std::is_same_v<P, float> && has_master()) elements.master.store(master_at(first), master_item());
    if constexpr (kMoments != MomentFormat::kFloat32) {
      lane.random = philox(group, scalars.step, kMomentStream, scalars.seed);
    }
    if constexpr (kCodes) {
      uint32_t largest = 0;
      RADAM_UNROLL
      for (int i = 0; i < kVec; ++i) {
        lane.values.v[i] = root[i];
        const uint32_t magnitude = bits_from_float(root[i]);  // no root is negative
        largest = magnitude > largest ? magnitude : largest;
      }
      lane.values.largest = largest;
    } else {
      if (kMoments == MomentFormat::kBFloat16 && ordinary) {
        narrow_number_moments(elements, lane.values, lane.random);
      } else {
        narrow_moments<kMoments>(elements, lane.values, lane.random);
      }
      elements.m.store(first_at(first), kMomentItem);
      elements.v.store(second_at(first), kMomentItem);
    }
  }

  RADAM_HD void store_scales(int number, const BlockScale& scale, const BlockScale& sq_scale) const {
    if (number > 0) return;
    store_streaming(arguments_.scales + scale_index(), scale.scale);
    store_streaming(arguments_.sq_scales + scale_index(), sq_scale.scale);
  }

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
  RADAM_HD int64_t scale_index() const { return int64_t(uint64_t(segment_.start + offset_) / kBlockElements); }

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

}  // namespace radam_fused
