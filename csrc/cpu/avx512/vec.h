// Sixteen elements at once in AVX-512, for loops that GCC does not vectorise well (docs/performance.md). Must match the
// functions of numerics/dtypes.h and numerics/quantization.h that the comments name, bit for bit:
// tests/kernels/test_avx512.py, tests/kernels/test_low_precision_bits.py.
//
// Elements are in pairs of vectors, those with even index and those with odd index. Two consecutive 16-bit elements are
// a 32-bit word: one operation extracts either of them, and three put both back. Keeping elements in order would need
// shuffles across vectors, for which there is one port.
#pragma once

#include "cpu/cpu_capability.h"
#include "numerics/dtypes.h"
#include "numerics/quantization.h"

#if RADAM_X86
#include "cpu/avx512/intrinsics.h"

#define RADAM_VEC RADAM_AVX512_INLINE

namespace radam_fused::avx512 {

constexpr int kLanes = 16;
constexpr int kElements = 2 * kLanes;  // in a pair of vectors

using F = __m512;
using U = __m512i;

struct Pair {
  F even, odd;
};

RADAM_VEC F all(float x) { return _mm512_set1_ps(x); }
// A constant loaded from memory, which is free beside arithmetic. GCC 12 would build it in a general register at every
// use, and moving it to a vector register occupies a port that the arithmetic needs.
template <uint32_t kBits>
RADAM_VEC U constant() {
  static constexpr uint32_t kMemory = kBits;
  U x;
  asm("vpbroadcastd %1, %0" : "=v"(x) : "m"(kMemory));
  return x;
}
RADAM_VEC U bits_of(F x) { return _mm512_castps_si512(x); }
RADAM_VEC F of_bits(U x) { return _mm512_castsi512_ps(x); }
RADAM_VEC U even_of(U words) { return _mm512_and_si512(words, constant<0xffffu>()); }
RADAM_VEC U odd_of(U words) { return _mm512_srli_epi32(words, 16); }
RADAM_VEC U magnitude_bits(F x) { return _mm512_and_si512(bits_of(x), constant<kMagnitude>()); }
RADAM_VEC __mmask16 is_number(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q); }

// 32 consecutive 16-bit elements as 16 words.
RADAM_VEC U load_words(const void* array, int i) { return _mm512_loadu_si512(static_cast<const char*>(array) + 2 * i); }
RADAM_VEC void store_words(void* array, int i, U words) {
  _mm512_storeu_si512(static_cast<char*>(array) + 2 * i, words);
}
// The upper halves of a pair, as words.
RADAM_VEC U upper_halves(U even, U odd) {
  constexpr int kSelect = 0xca;  // bits of the second operand where the first has ones, else of the third
  return _mm512_ternarylogic_epi32(constant<0xffff0000u>(), odd, odd_of(even), kSelect);
}

RADAM_VEC U evens_first() {
  return _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22, 20, 18, 16, 14,
                          12, 10, 8, 6, 4, 2, 0);
}
RADAM_VEC U in_order() {
  return _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                          3, 18, 2, 17, 1, 16, 0);
}

RADAM_VEC Pair widened(bfloat16, U words) {
  return {of_bits(_mm512_slli_epi32(words, 16)), of_bits(_mm512_and_si512(words, constant<0xffff0000u>()))};
}
RADAM_VEC Pair widened(float16, U words) {
  const U split = _mm512_permutexvar_epi16(evens_first(), words);
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(split)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(split, 1))};
}

template <typename S>
RADAM_VEC Pair load_pair(const void* array, int i) {
  if constexpr (std::is_same_v<S, float>) {
    const float* from = static_cast<const float*>(array) + i;
    const F low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + kLanes);
    const U evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const U odds = _mm512_add_epi32(evens, constant<1u>());
    return {_mm512_permutex2var_ps(low, evens, high), _mm512_permutex2var_ps(low, odds, high)};
  } else {
    return widened(S{}, load_words(array, i));
  }
}

RADAM_VEC Pair load_pair(const void* array, int dtype, int i) {
  if (dtype == kFloat32) return load_pair<float>(array, i);
  return dtype == kFloat16 ? load_pair<float16>(array, i) : load_pair<bfloat16>(array, i);
}

RADAM_VEC void store_floats(void* array, int i, const Pair& x) {
  float* to = static_cast<float*>(array) + i;
  const U low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const U high = _mm512_add_epi32(low, constant<8u>());
  _mm512_storeu_ps(to, _mm512_permutex2var_ps(x.even, low, x.odd));
  _mm512_storeu_ps(to + kLanes, _mm512_permutex2var_ps(x.even, high, x.odd));
}

// A pair rounded to float16, as words.
template <int kRounding>
RADAM_VEC U halves(const Pair& x) {
  const __m256i even = _mm512_cvtps_ph(x.even, kRounding), odd = _mm512_cvtps_ph(x.odd, kRounding);
  return _mm512_permutexvar_epi16(in_order(), _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1));
}

// The float32 whose upper half becomes the bfloat16: the bits plus a rounding addend, or a NaN.
RADAM_VEC U rounded_by(F x, U addend) {
  return _mm512_mask_add_epi32(constant<0x7fc00000u>(), is_number(x), bits_of(x), addend);
}
RADAM_VEC U to_nearest(F x) {
  const U last = _mm512_and_si512(odd_of(bits_of(x)), constant<1u>());
  return rounded_by(x, _mm512_add_epi32(last, constant<0x7fffu>()));
}

// Narrow<S>, for a pair.
RADAM_VEC U narrowed(bfloat16, const Pair& x) { return upper_halves(to_nearest(x.even), to_nearest(x.odd)); }
RADAM_VEC U narrowed(float16, const Pair& x) { return halves<_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC>(x); }

// Parameter<P>.
RADAM_VEC U param_of_master(bfloat16, const Pair& x) {
  return upper_halves(rounded_by(x.even, constant<0x8000u>()), rounded_by(x.odd, constant<0x8000u>()));
}
RADAM_VEC U param_of_master(float16 p, const Pair& x) { return narrowed(p, x); }

// Stochastic<S>; `rand16` has the random bits of two elements per word.
RADAM_VEC U stochastic(bfloat16, const Pair& x, U rand16) {
  return upper_halves(rounded_by(x.even, even_of(rand16)), rounded_by(x.odd, odd_of(rand16)));
}

// The float32 that is truncated to float16. The random addend is that of Stochastic<float16>, in units of 1 instead of
// the smallest subnormal. Overflow gives infinity, where truncation alone would give the largest number.
RADAM_VEC F before_truncation(F x, U rand16) {
  const U rest = magnitude_bits(x);
  const U normal = _mm512_add_epi32(rest, _mm512_srli_epi32(rand16, 3));
  const F low = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(rand16, 2)), all(0x1p-38f));
  const __mmask16 is_subnormal = _mm512_cmplt_epu32_mask(rest, constant<0x38800000u>());
  U cut = bits_of(_mm512_mask_add_ps(of_bits(normal), is_subnormal, of_bits(rest), low));
  const __mmask16 is_large = _mm512_cmpge_epu32_mask(cut, constant<0x47800000u>());
  if (__builtin_expect(is_large, 0)) {
    cut = _mm512_mask_mov_epi32(cut, is_large, constant<kInfinity>());
    cut = _mm512_mask_mov_epi32(cut, _knot_mask16(is_number(x)), constant<kQuietNan>());
  }
  constexpr int kSelect = 0xca;
  return of_bits(_mm512_ternarylogic_epi32(constant<kMagnitude>(), cut, bits_of(x), kSelect));
}
RADAM_VEC U stochastic(float16, const Pair& x, U rand16) {
  return halves<_MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC>(
      {before_truncation(x.even, even_of(rand16)), before_truncation(x.odd, odd_of(rand16))});
}

// swap_bytes of two random numbers per word.
RADAM_VEC U swapped_bytes(U rand16) {
  const U swapped = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return _mm512_shuffle_epi8(rand16, swapped);
}

RADAM_VEC F root_of(F v) { return _mm512_sqrt_ps(v); }

RADAM_VEC Pair product(const Pair& a, const Pair& b) {
  return {_mm512_mul_ps(a.even, b.even), _mm512_mul_ps(a.odd, b.odd)};
}
RADAM_VEC Pair sum(const Pair& a, const Pair& b) {
  return {_mm512_add_ps(a.even, b.even), _mm512_add_ps(a.odd, b.odd)};
}
RADAM_VEC Pair difference(const Pair& a, const Pair& b) {
  return {_mm512_sub_ps(a.even, b.even), _mm512_sub_ps(a.odd, b.odd)};
}

}  // namespace radam_fused::avx512
#endif
