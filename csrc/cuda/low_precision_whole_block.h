// The update of a whole block, aligned in every array, by the rectified rule: what nearly every block of a model is.
// The dtypes of parameter and gradient are compile-time constants, and what a rare value would need is checked once for
// the eight elements of a thread. Must match the functions of low_precision_update.h bit for bit.
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/low_precision_stored_block.h"
#include "cuda/low_precision_update.h"
#include "cuda/ordinary_update.h"

namespace radam_fused {

// Eight elements in float32; S is their type.
template <typename S>
RADAM_HD void widen_whole(float* to, const Packed& from) {
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    if constexpr (std::is_same_v<S, float>) {
      to[i] = float_from_bits(from.word[i]);
    } else if constexpr (std::is_same_v<S, bfloat16>) {
      to[i] = float_from_bits(i % 2 == 0 ? from.word[i / 2] << 16 : from.word[i / 2] & 0xffff0000u);
    } else if constexpr (std::is_same_v<S, float16>) {
      to[i] = widen_half(uint16_t(from.word[i / 2] >> (i % 2 * 16)));
    } else {
      to[i] = widen(from.value<S>(i));
    }
  }
}

// The i-th random number, and the same with its bytes swapped, by one instruction each.
RADAM_HD uint32_t rand16_at(const Philox& random, int i) {
  return i % 2 == 0 ? random.word[i / 2] & 0xffffu : random.word[i / 2] >> 16;
}
RADAM_HD uint32_t swapped_at(const Philox& random, int i) {
  return byte_perm(random.word[i / 2], 0, i % 2 == 0 ? 0x4401 : 0x4423);
}

// The i-th code of a block as the mantissa of a float, of which `base` has the upper bytes.
RADAM_HD float code_as_mantissa(const Packed& codes, int i, uint32_t base) {
  return float_from_bits(byte_perm(codes.word[i / 4], base, 0x7540 + i % 4));
}

// The codes of eight numbers in fixed point (stochastic_code): byte 2 of each.
RADAM_HD Packed codes_of(const uint32_t* fixed, uint32_t mask) {
  Packed codes;
  RADAM_UNROLL
  for (int w = 0; w < 2; ++w) {
    const uint32_t low = byte_perm(fixed[4 * w], fixed[4 * w + 1], 0x0062);
    const uint32_t high = byte_perm(fixed[4 * w + 2], fixed[4 * w + 3], 0x0062);
    codes.word[w] = byte_perm(low, high, 0x5410) & mask;
  }
  return codes;
}

template <MomentFormat kMoments>
RADAM_HD void read_whole_moments(Values& values, const Elements& in) {
  if constexpr (kMoments == MomentFormat::kInt8) {
    const uint32_t root_base = in_register(0x2b000000u), first_base = in_register(0x4b000000u);
    Packed first;
    first.word[0] = in.m.word[0] ^ 0x80808080u;
    first.word[1] = in.m.word[1] ^ 0x80808080u;
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      const float octaves = double_exponent(code_as_mantissa(in.v, i, root_base) - 0x1p-41f);
      const float root = RootCode::decode(octaves, in.sq_scale);
      const float code = code_as_mantissa(first, i, first_base) - (0x1p23f + 128.0f);
      values.m[i] = code * in.scale * FirstCode::power(octaves);
      values.v[i] = root * root;
    }
  } else if constexpr (kMoments == MomentFormat::kFloat16) {
    widen_whole<float16>(values.m, in.m);
    widen_whole<float16>(values.v, in.v);
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {  // HalfRoot::decode, HalfFirst::decode
      const float root = values.v[i] * values.v[i];
      values.m[i] = values.m[i] * root;
      values.v[i] = root * root;
    }
  } else {
    widen_whole<MomentOf<kMoments>>(values.m, in.m);
    widen_whole<MomentOf<kMoments>>(values.v, in.v);
  }
}

// write_parameter for numbers, without a check of each.
template <typename P>
RADAM_HD void write_numbers(Elements& out, const float* x, const StateFormat& format, const Philox& random) {
  if (format.master == MasterFormat::kSplit) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; i += 2) {
      const uint32_t low = bits_from_float(x[i]), high = bits_from_float(x[i + 1]);
      out.p.word[i / 2] = byte_perm(low + 0x8000u, high + 0x8000u, 0x7632);
      out.master.word[i / 2] = byte_perm(low, high, 0x5410);
    }
  } else if (format.stochastic) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; i += 2) {
      out.p.word[i / 2] = byte_perm(bits_from_float(x[i]) + rand16_at(random, i),
                                    bits_from_float(x[i + 1]) + rand16_at(random, i + 1), 0x7632);
    }
  } else {
    RADAM_UNROLL
    for (int i = 0; i < kVec; i += 2) out.p.word[i / 2] = narrow_pair<P>(x[i], x[i + 1]);
  }
}

template <typename P>
RADAM_HD void write_whole_parameter(Elements& out, const float* x, const StateFormat& format, const Philox& random) {
  if constexpr (std::is_same_v<P, float>) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) out.p.set(i, x[i]);
  } else {
    const bool stochastic_half = format.stochastic && std::is_same_v<P, float16>;
    const bool simple = format.master == MasterFormat::kNone || format.master == MasterFormat::kSplit;
    if (simple && !stochastic_half && are_numbers<kVec>(x)) {
      write_numbers<P>(out, x, format, random);
    } else {
      write_parameter(out, x, format, UpdateRule::kRectified, random);
    }
  }
}

// narrow_moments for bfloat16 numbers, without a check of each.
RADAM_HD void narrow_number_moments(Elements& out, const Values& values, const Philox& random) {
  RADAM_UNROLL
  for (int w = 0; w < kVec / 2; ++w) {
    const int i = 2 * w;
    out.m.word[w] = byte_perm(bits_from_float(values.m[i]) + swapped_at(random, i),
                              bits_from_float(values.m[i + 1]) + swapped_at(random, i + 1), 0x7632);
    out.v.word[w] = byte_perm(bits_from_float(values.v[i]) + rand16_at(random, i),
                              bits_from_float(values.v[i + 1]) + rand16_at(random, i + 1), 0x7632);
  }
}

// encode_roots and encode_quotients.
RADAM_HD Packed encode_whole_roots(Values& values, const BlockScale& scale, const Philox& random) {
  const uint32_t base = in_register(0x2b000000u), sign = in_register(0x80000000u);
  uint32_t fixed[kVec];
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    fixed[i] = RootCode::encode(values.v[i], scale.factor, rand16_at(random, i));
    const float code = float_from_bits(byte_perm(fixed[i], base, 0x7542)) - 0x1p-41f;
    // FirstCode::quotient, with its shift and subtraction in one multiplication.
    values.m[i] = values.m[i] * float_from_bits((bits_from_float(code) & FirstCode::kExponent / 2) * ~1u + sign);
  }
  return codes_of(fixed, scale.codes);
}

RADAM_HD Packed encode_whole_quotients(const Values& values, const BlockScale& scale, const Philox& random) {
  uint32_t fixed[kVec];
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    fixed[i] = FirstCode::encode(values.m[i], scale.factor, swapped_at(random, i));
  }
  return codes_of(fixed, scale.codes);
}

// A whole block of a segment for which `is_whole` (csrc/cuda/low_precision_tile_loop.h) is true.
template <MomentFormat kMoments, typename P, typename G, typename Arguments>
class LowPrecisionWholeBlock {
 public:
  RADAM_HD LowPrecisionWholeBlock(const Arguments& arguments, const TileSegment& segment, char* grad, int64_t offset)
      : block_{arguments, segment, grad, offset} {}

  template <typename Warp>
  RADAM_HD void update(const Warp& warps, const StepScalars<float>& scalars) const {
    Warp warp = warps.for_block();
    keep_apart();
    warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
      const int64_t first = block_.offset + number * kVec;
      Elements elements = load(first);
      step(elements, first, scalars, lane);
    });
    if constexpr (kCodes) {
      const BlockScale sq_scale = RootCode::scale(warp.largest());
      warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
        encode_whole_roots(lane.values, sq_scale, lane.random)
            .store(block_.second_at(block_.offset + number * kVec), kMomentItem);
        lane.values.largest = largest_of(lane.values.m, kVec);
      });
      const BlockScale scale = FirstCode::scale(warp.largest(), sq_scale);
      warp([&](int number, Lane& lane) RADAM_INLINE_LAMBDA {
        encode_whole_quotients(lane.values, scale, lane.random)
            .store(block_.first_at(block_.offset + number * kVec), kMomentItem);
        block_.store_scales(number, scale, sq_scale);
      });
    }
    keep_apart();
  }

 private:
  using Stored = StoredBlock<kMoments, Arguments>;
  static constexpr bool kCodes = Stored::kCodes;
  static constexpr int kMomentItem = Stored::kMomentItem;

  // nvcc would merge what the instantiations have in common, and test the dtypes again in between.
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

  RADAM_HD Elements load(int64_t first) const {
    Elements in;
    if constexpr (kCodes) {
      in.scale = load_streaming(block_.arguments.scales + block_.scale_index());
      in.sq_scale = load_streaming(block_.arguments.sq_scales + block_.scale_index());
    }
    in.p = Packed::load(static_cast<char*>(block_.segment.param) + first * int(sizeof(P)), sizeof(P));
    in.g = Packed::load(block_.grad + first * int(sizeof(G)), sizeof(G));
    in.m = Packed::load(block_.first_at(first), kMomentItem);
    in.v = Packed::load(block_.second_at(first), kMomentItem);
    if (!std::is_same_v<P, float> && block_.has_master())
      in.master = Packed::load(block_.master_at(first), block_.master_item());
    if (block_.arguments.zero_grads && !block_.segment.overlapping) {
      Packed{}.store(block_.grad + first * int(sizeof(G)), sizeof(G));
    }
    return in;
  }

  RADAM_HD void step(Elements& elements, int64_t first, const StepScalars<float>& scalars, Lane& lane) const {
    const StateFormat& format = block_.arguments.format;
    const auto group = uint64_t(block_.segment.rng_offset + first) / kRandsPerCall;
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
    elements.p.store(static_cast<char*>(block_.segment.param) + first * int(sizeof(P)), sizeof(P));
    if (!std::is_same_v<P, float> && block_.has_master())
      elements.master.store(block_.master_at(first), block_.master_item());
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
      elements.m.store(block_.first_at(first), kMomentItem);
      elements.v.store(block_.second_at(first), kMomentItem);
    }
  }

  const Stored block_;
};

}  // namespace radam_fused
