// The correctly rounded square root of sixteen float32, in AVX-512, without the divider: beside a division that is busy
// anyway it costs multiply-adds only.
//
// Markstein's iteration ("Computation of elementary functions on the IBM RISC System/6000 processor", IBM J. Res. Dev. 34,
// 1990) from the 14 bits of vrsqrt14ps: g goes to the root and h to half its reciprocal, and the last remainder, exact
// since multiplication and subtraction are fused, decides the rounding. Fused operations in here are no contraction of the
// contract's lines (docs/design.md): what comes out are the bits of vsqrtps, for every float32
// (tests/test_square_root.py).
#pragma once

#include "isa.h"

#if RADAM_X86
#include "intrinsics.h"

namespace radam_fused {

// The iteration, for normal numbers whose remainder is not subnormal.
RADAM_AVX512_INLINE __m512 iterated_root(__m512 v) {
  const __m512 half = _mm512_set1_ps(0.5f);
  const __m512 y = _mm512_rsqrt14_ps(v);
  __m512 g = _mm512_mul_ps(v, y), h = _mm512_mul_ps(half, y);
  const __m512 r = _mm512_fnmadd_ps(g, h, half);
  g = _mm512_fmadd_ps(g, r, g);
  h = _mm512_fmadd_ps(h, r, h);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(g, g, v), h, g);
}

// Lanes that it is not for: zeros, subnormals and what comes near them, infinities, NaN, and whatever is negative.
RADAM_AVX512_INLINE __mmask16 without_iteration(__m512 v) {
  const __m512i least = _mm512_set1_epi32(0x0d000000);  // 2^-101
  const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(v), least);
  return _mm512_cmpge_epu32_mask(above, _mm512_sub_epi32(_mm512_set1_epi32(0x7f800000), least));
}

RADAM_AVX512_INLINE __m512 square_root(__m512 v) {
  if (__builtin_expect(without_iteration(v), 0)) return _mm512_sqrt_ps(v);
  return iterated_root(v);
}

}  // namespace radam_fused
#endif
