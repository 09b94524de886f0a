// Square roots and divisions of several elements with one check for all of them. Of each sqrtf and each division nvcc
// makes the same few instructions, a check of its own, and a branch around the treatment of rare operands; here the
// operands of all elements are checked together, and rare ones divided by sqrtf and `/`. The results are the same:
// correctly rounded.
//
// A fused multiply-add rounds once where the numeric contract rounds twice. It is used here alone, in sequences whose
// result is the correctly rounded one. The comment `exact` marks these in the PTX, where tests/codegen/cuda_sass.py
// counts all others.
#pragma once

#include <cmath>

#include "numerics/dtypes.h"

namespace radam_fused {

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float approximate_reciprocal_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

RADAM_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("fma.rn.f32 %0, %1, %2, %3; // exact" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
#else
  return fmaf(a, b, c);
#endif
}

// Operands for which the sequences below hold: magnitudes within [kLeast, kMost], or zero.
struct OrdinaryRange {
  static constexpr uint32_t kLeastRoot = 0x0d000000u;               // 2^-101, of a number whose root is taken
  static constexpr uint32_t kMostRoot = 0x67800000u;                // 2^80
  static constexpr uint32_t kLeastDividend = 0x1c800000u;           // 2^-70
  static constexpr uint32_t kMostDividend = 0x5d800000u;            // 2^60
  static constexpr float kLeastEps = 0x1p-60f, kMostEps = 0x1p30f;  // what is added to the root that divides

  // A zero becomes the largest number: no less than the least.
  uint32_t least_root = ~0u, most_root = 0, least_dividend = ~0u, most_dividend = 0;

  RADAM_HD void add(float dividend, float square) {
    const uint32_t root = bits_from_float(square), twice = bits_from_float(dividend) << 1;  // without the sign
    least_root = lesser(least_root, root - 1);
    most_root = greater(most_root, root);
    least_dividend = lesser(least_dividend, twice - 1);
    most_dividend = greater(most_dividend, twice);
  }
  RADAM_HD bool holds() const {
    return least_root >= kLeastRoot - 1 && most_root <= kMostRoot && least_dividend >= 2 * kLeastDividend - 1 &&
           most_dividend <= 2 * kMostDividend;
  }
  static RADAM_HD bool has(float eps) { return eps >= kLeastEps && eps <= kMostEps; }

 private:
  static RADAM_HD uint32_t lesser(uint32_t a, uint32_t b) { return a < b ? a : b; }
  static RADAM_HD uint32_t greater(uint32_t a, uint32_t b) { return a > b ? a : b; }
};

// The square root of x from y, about 1 / sqrt(x); and a / b from y, about 1 / b. The sequences of nvcc, with one
// change: the remainder of the division has the other sign, so that the quotient of a -0 is -0.
// tests/kernels/test_exact_division.py runs both on the host, with every error that a GPU's approximations may have.
RADAM_HD float root_from(float x, float y) {
  const float root = x * y;
  return fused(fused(-root, root, x), y * 0.5f, root);
}
RADAM_HD float quotient_from(float a, float b, float y) {
  y = fused(y, fused(-b, y, 1.0f), y);
  const float q = a * y;
  return fused(-y, fused(b, q, -a), q);
}

// The operand of which the approximation is taken: of 0 something finite.
RADAM_HD float root_operand(float x) { return fmaxf(x, 0x1p-101f); }

// sqrtf, of 0 or a number from kLeastRoot to kMostRoot.
RADAM_HD float root_of_ordinary(float x) {
#if defined(__CUDA_ARCH__)
  return root_from(x, approximate_reciprocal_root(root_operand(x)));
#else
  return sqrtf(x);
#endif
}

// a / b, of a 0 or a magnitude from kLeastDividend to kMostDividend, and b from kLeastEps to 2^41.
RADAM_HD float quotient_of_ordinary(float a, float b) {
#if defined(__CUDA_ARCH__)
  return quotient_from(a, b, approximate_reciprocal(b));
#else
  return a / b;
#endif
}

// The square roots of v, and m over each of them plus eps; whether all were ordinary, so that none is a NaN or
// infinite.
template <int N>
RADAM_HD bool roots_and_quotients(const float* m, const float* v, float eps, float* root, float* d) {
  OrdinaryRange range;
  RADAM_UNROLL
  for (int i = 0; i < N; ++i) range.add(m[i], v[i]);
  const bool ordinary = range.holds();
  if (ordinary) {
    RADAM_UNROLL
    for (int i = 0; i < N; ++i) {
      root[i] = root_of_ordinary(v[i]);
      d[i] = quotient_of_ordinary(m[i], root[i] + eps);
    }
  } else {
    RADAM_UNROLL
    for (int i = 0; i < N; ++i) {
      root[i] = sqrtf(v[i]);
      d[i] = m[i] / (root[i] + eps);
    }
  }
  return ordinary;
}

}  // namespace radam_fused
