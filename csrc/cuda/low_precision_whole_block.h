// The update of a whole block, aligned in every array, by the rectified rule: what nearly every block of a model is.
// The dtypes of parameter and gradient are compile-time constants, and what a rare value would need is checked once for
// the eight elements of a thread. Must match the functions of low_precision_update.h bit for bit.
#pragma once

#include "cuda/intrinsics.h"
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

}  // namespace radam_fused
