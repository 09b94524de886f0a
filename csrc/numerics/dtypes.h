// The dtypes that the kernels support: their numbers, as Python has them (NATIVE_DTYPE), and how elements are stored.
// 16-bit ones are widened exactly, and rounded to nearest even in integer arithmetic, so that every compiler,
// instruction set and device gives the same bits. There are no branches, so compilers vectorise loops over these.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define RADAM_HD __host__ __device__ __forceinline__
#define RADAM_UNROLL _Pragma("unroll")
#define RADAM_ROLL _Pragma("unroll 1")
#else
#define RADAM_UNROLL
#define RADAM_ROLL
#define RADAM_HD inline __attribute__((always_inline))
#endif

// Between the parameters of a lambda and its body: it must be inlined, or what it refers to goes through memory.
#define RADAM_INLINE_LAMBDA __attribute__((always_inline))

namespace radam_fused {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

RADAM_HD float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

RADAM_HD uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

RADAM_HD float widen(float x) { return x; }
RADAM_HD double widen(double x) { return x; }
RADAM_HD float widen(bfloat16 x) { return float_from_bits(uint32_t(x.bits) << 16); }

RADAM_HD float widen(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  const uint32_t exponent_shift = rest >= 0x7c00u ? 0x70000000u : 0x38000000u;  // inf and NaN: exponent 255
  const uint32_t normal = (rest << 13) + exponent_shift;
  // A subnormal is rest * 2^-24, and 2^-24 is the ulp of 0.5: as the mantissa of 0.5 it is exact after the subtraction.
  const uint32_t subnormal = bits_from_float(float_from_bits(0x3f000000u + rest) - 0.5f);
  return float_from_bits(sign | (rest < 0x0400u ? subnormal : normal));
}

template <typename Stored>
struct Narrow;

template <>
struct Narrow<float> {
  static RADAM_HD float from(float x) { return x; }
};

template <>
struct Narrow<double> {
  static RADAM_HD double from(double x) { return x; }
};

template <>
struct Narrow<bfloat16> {
  static RADAM_HD bfloat16 from(float x) {
    const uint32_t bits = bits_from_float(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  }
};

template <>
struct Narrow<float16> {
  static RADAM_HD float16 from(float x) {
    const uint32_t bits = bits_from_float(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    const uint32_t shifted = (rest + 0x0fffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
    const uint32_t normal = shifted < 0x7c00u ? shifted : 0x7c00u;
    // Below 2^-14, adding 0.5 leaves the value in units of 2^-24, rounded to nearest even by the addition itself.
    const uint32_t subnormal = bits_from_float(float_from_bits(rest) + 0.5f) - 0x3f000000u;
    const uint32_t finite = rest < 0x38800000u ? subnormal : normal;
    return {uint16_t(sign | (rest > 0x7f800000u ? 0x7e00u : rest >= 0x47800000u ? 0x7c00u : finite))};
  }
};

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kUnsupported = 4 };

RADAM_HD constexpr int64_t item_size(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// float64 parameters need float64 gradients. The other dtypes may be mixed; their arithmetic is in float32.
constexpr bool supported(int param_dtype, int grad_dtype) {
  return param_dtype < kUnsupported && grad_dtype < kUnsupported &&
         (param_dtype == kFloat64) == (grad_dtype == kFloat64);
}

constexpr int moment_dtype(int param_dtype) { return param_dtype == kFloat64 ? kFloat64 : kFloat32; }

// Calls `f` with a value of the type that stores a dtype; returns `unsupported` if there is none.
template <typename Result, typename F>
Result dispatch_dtype(int dtype, Result unsupported, const F& f) {
  switch (dtype) {
    case kFloat32:
      return f(float{});
    case kFloat16:
      return f(float16{});
    case kBFloat16:
      return f(bfloat16{});
    case kFloat64:
      return f(double{});
    default:
      return unsupported;
  }
}

// The same for the dtypes of a parameter and its gradient.
template <typename Result, typename F>
Result dispatch_dtypes(int param_dtype, int grad_dtype, Result unsupported, const F& f) {
  return dispatch_dtype(param_dtype, unsupported, [&](auto p) {
    using P = decltype(p);
    return dispatch_dtype(grad_dtype, unsupported, [&](auto g) {
      using G = decltype(g);
      if constexpr (std::is_same_v<P, double> == std::is_same_v<G, double>) {
        return f(P{}, G{});
      } else {
        return unsupported;
      }
    });
  });
}

}  // namespace radam_fused
