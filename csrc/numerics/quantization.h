// Low-precision state: how one element of moments, master weights and parameters is read from fewer bits than the
// arithmetic has, and written to them, for host and device (docs/precision.md has the formulae). Must match
// radam_fused/backends/reference/low_precision.py bit for bit.
#pragma once

#include <cmath>

#include "numerics/dtypes.h"

namespace radam_fused {

constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u, kQuietNan = 0x7fc00000u;

// Rounds up in magnitude with the probability that makes the mean exact; `rand16` holds 16 random bits.
template <typename Stored>
struct Stochastic;

template <>
struct Stochastic<float> {
  static RADAM_HD float from(float x, uint32_t) { return x; }
};

template <>
struct Stochastic<bfloat16> {
  static RADAM_HD bfloat16 from(float x, uint32_t rand16) {
    const uint32_t bits = bits_from_float(x);
    return {uint16_t((bits & kMagnitude) > kInfinity ? 0x7fc0u : (bits + rand16) >> 16)};
  }
};

template <>
struct Stochastic<float16> {
  static RADAM_HD float16 from(float x, uint32_t rand16) {
    const uint32_t bits = bits_from_float(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = bits & kMagnitude;
    const uint32_t shifted = (rest + (rand16 >> 3) - 0x38000000u) >> 13;
    const uint32_t normal = shifted < 0x7c00u ? shifted : 0x7c00u;
    // In units of the smallest subnormal, with 14 of the random bits: an exact multiple stays what it is.
    const float magnitude = rest < 0x38800000u ? float_from_bits(rest) : 0.0f;
    const uint32_t subnormal = uint32_t(int32_t(magnitude * 0x1p24f + float(int32_t(rand16 >> 2)) * 0x1p-14f));
    const uint32_t finite = rest < 0x38800000u ? subnormal : normal;
    return {uint16_t(sign | (rest > kInfinity ? 0x7e00u : rest >= 0x47800000u ? 0x7c00u : finite))};
  }
};

// The parameter for a master weight. bfloat16 is rounded to nearest with ties away from zero: after ties to even the 16
// bits of kSplit could not restore the master weight. kFloat32 rounds in the same way.
template <typename P>
struct Parameter {
  static RADAM_HD P from(float x) { return Narrow<P>::from(x); }
};

template <>
struct Parameter<bfloat16> {
  static RADAM_HD bfloat16 from(float x) {
    const uint32_t bits = bits_from_float(x);
    return {uint16_t((bits & kMagnitude) > kInfinity ? 0x7fc0u : (bits + 0x8000u) >> 16)};
  }
};

// The master weight; or the parameter, if user code has written the parameter since the last step.
template <typename P>
RADAM_HD float from_master(P p, float master) {
  return Parameter<P>::from(master).bits == p.bits ? master : widen(p);
}

// MasterFormat::kSplit: the float32 made of a bfloat16 and 16 more bits, and these bits of a float32.
RADAM_HD float join(bfloat16 high, int16_t low) {
  return float_from_bits((uint32_t(high.bits) << 16) + uint32_t(int32_t(low)));
}
RADAM_HD int16_t low_bits(float x) {
  const uint32_t bits = bits_from_float(x);
  return int16_t(uint16_t((bits & kMagnitude) > kInfinity ? 0u : bits & 0xffffu));
}

RADAM_HD uint32_t magnitude_bits(float x) { return bits_from_float(x) & kMagnitude; }

// Kahan summation: the parameter takes what it can represent of the update, and the compensation the rest. Both are
// values of P. An infinite parameter has no rest: inf - inf would be a NaN.
template <typename P>
RADAM_HD void compensate(float& p, float& compensation, float decrease) {
  const float update = compensation - decrease;
  const float after = widen(Narrow<P>::from(p + update));
  const float rest = (p - after) + update;
  compensation = widen(Narrow<P>::from(magnitude_bits(after) == kInfinity ? 0.0f : rest));
  p = after;
}

// The next float up, for factors: a factor that was rounded down would encode the largest element of a block below the
// largest code, and the next step would compute a smaller scale.
RADAM_HD float next_up(float x) { return float_from_bits(bits_from_float(x) + 1); }

// What the codes of a block are made with.
struct BlockScale {
  float scale;     // by which codes are decoded; NaN for a block with a NaN or an infinity, whose codes are 0
  float factor;    // by which elements are multiplied
  uint32_t codes;  // a mask: no bits if the codes are 0

  // From the largest magnitude of the block, as bits: compared as bits, a NaN is the largest of all. `top` is what the
  // largest code stands for. A scale has 23 bits, so that encoding what it decodes to gives the same scale.
  static RADAM_HD BlockScale from(uint32_t largest, float top, float unit) {
    const bool finite = largest < kInfinity;
    const float magnitude = float_from_bits(largest);
    const float scale = float_from_bits((bits_from_float(magnitude * unit) + 1u) & ~1u);
    return {finite ? scale : float_from_bits(kQuietNan), magnitude > 0.0f ? next_up(top / magnitude) : 0.0f,
            finite ? ~0u : 0u};
  }
};

// Of a NaN and a number the number, in the form that each compiler makes one instruction of.
#if defined(__CUDA_ARCH__)
RADAM_HD float smaller(float x, float limit) { return fminf(x, limit); }
RADAM_HD float larger(float x, float limit) { return fmaxf(x, limit); }
#else
RADAM_HD float smaller(float x, float limit) { return x < limit ? x : limit; }
RADAM_HD float larger(float x, float limit) { return x > limit ? x : limit; }
#endif

// The bits shifted by one: a square root in straight pieces, one for each octave, times 2^-63.5; and its opposite.
RADAM_HD float half_exponent(float x) { return float_from_bits(bits_from_float(x) >> 1); }
RADAM_HD float double_exponent(float x) { return float_from_bits(bits_from_float(x) << 1); }

// A number in fixed point, rounded to 14 bits after the point, plus 16 random ones there: its code is byte 2. The sum
// with `offset`, 512 or more times a code's unit, has that many bits: no conversion to an integer.
RADAM_HD uint32_t stochastic_code(float c, float offset, uint32_t rand16) {
  return (bits_from_float(c + offset) << 2) + rand16;
}
RADAM_HD uint32_t code_of(uint32_t fixed) { return (fixed >> 16) & 0xffu; }

// 8 bits for the square root of the second moment: codes are linear within each octave of the root, half as many in
// every other octave down, like those of the root's own square root; from 2^-64 on no root has code 0.
struct RootCode {
  static constexpr float kTop = 32512.0f;   // for which the largest code, 255, stands in units of the scale
  static constexpr float kUnit = 0x1p-64f;  // a code, as half_exponent has it
  static constexpr float kOffset = 0x1p-55f;

  static RADAM_HD BlockScale scale(uint32_t largest) { return BlockScale::from(largest, kTop, 1.0f / kTop); }
  static RADAM_HD uint32_t encode(float root, float factor, uint32_t rand16) {
    const float c = half_exponent(root * factor);
    return stochastic_code(larger(c, smaller(root, kUnit)), kOffset, rand16);
  }
  // What a code stands for, in units of the scale: from 1/2 to kTop, or 0. The code is put into the mantissa of a
  // float.
  static RADAM_HD float octaves(uint32_t code) {
    return double_exponent(float_from_bits(0x2b000000u | code) - 0x1p-41f);
  }
  static RADAM_HD float decode(float octaves, float scale) { return octaves * scale; }
};

// 8 bits for the first moment: codes are linear in its quotient with the power of two below the decoded root in units
// of the scale. That is close to the step that it causes, and no division.
struct FirstCode {
  static constexpr float kMinScale = 0x1p-110f;  // a block with smaller quotients alone underflows to zero
  static constexpr float kOffset = 768.0f;
  static constexpr uint32_t kExponent = 0x7f800000u;

  static RADAM_HD float power(float octaves) { return float_from_bits(bits_from_float(octaves) & kExponent); }
  // 4 over the power of two; -0 where the root is 0, and the first moment becomes 0.
  static RADAM_HD float quotient(float m, float octaves) {
    return m * float_from_bits(0x80000000u - (bits_from_float(octaves) & kExponent));
  }
  static RADAM_HD BlockScale scale(uint32_t largest, const BlockScale& root) {
    const uint32_t at_least = largest < bits_from_float(kMinScale) ? 0 : largest;
    return BlockScale::from(root.codes != 0 ? at_least : kQuietNan, 127.0f, 1.0f / 508.0f);
  }
  static RADAM_HD uint32_t encode(float quotient, float factor, uint32_t rand16) {
    return stochastic_code(quotient * factor, kOffset, rand16);
  }
  static RADAM_HD float decode(int32_t code, float scale, float octaves) {
    return float(code) * scale * power(octaves);
  }
};

// float16 for the square root of the second moment: stored as the root's own square root, for a range from 4e-15 to
// 4e9. At least kMinRoot where the root is above 0: a step divides by it.
struct HalfRoot {
  static constexpr float kMinRoot = 0x1p-24f;

  static RADAM_HD float at_least_min(float fourth) { return fourth > 0.0f && fourth < kMinRoot ? kMinRoot : fourth; }
  static RADAM_HD float16 encode(float root, uint32_t rand16) {
    return Stochastic<float16>::from(at_least_min(sqrtf(root)), rand16);
  }
  static RADAM_HD float decode(float16 fourth) { return widen(fourth) * widen(fourth); }
};

// float16 for the first moment: its quotient with the decoded root, the step that it causes, so that rounding the root
// makes no step longer. Finite quotients are limited to the largest float16.
struct HalfFirst {
  static constexpr uint32_t kLargest = 0x477fe000u;  // 65504

  static RADAM_HD float quotient(float m, float root) { return root > 0.0f ? m / root : 0.0f; }

  static RADAM_HD float limited(float quotient) {
    const bool too_large = magnitude_bits(quotient) - (kLargest + 1) < kInfinity - (kLargest + 1);
    const uint32_t sign = bits_from_float(quotient) & ~kMagnitude;
    return too_large ? float_from_bits(sign | kLargest) : quotient;
  }
  static RADAM_HD float16 encode(float m, float root, uint32_t rand16) {
    return Stochastic<float16>::from(limited(quotient(m, root)), rand16);
  }
  static RADAM_HD float decode(float16 quotient, float root) { return widen(quotient) * root; }
};

}  // namespace radam_fused
