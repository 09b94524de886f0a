// 8-bit codes and float16 moments, sixteen at once in AVX-512: RootCode, FirstCode, HalfRoot and HalfFirst. Must match
// numerics/quantization.h bit for bit; the comments name the functions there.
#pragma once

#include "cpu/avx512/vec.h"

#if RADAM_X86
namespace radam_fused::avx512 {

// The codes of a pair, in 32-bit lanes.
struct Codes {
  U even, odd;
};

// Two consecutive codes per 16 bits.
RADAM_VEC U load_codes(const void* array, int i) {
  return _mm512_cvtepu16_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(array) + i)));
}
RADAM_VEC void store_codes(void* array, int i, const Codes& codes) {
  constexpr int kSelect = 0xca;
  const U both = _mm512_ternarylogic_epi32(constant<0xffu>(), codes.even, _mm512_slli_epi32(codes.odd, 8), kSelect);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<char*>(array) + i), _mm512_cvtepi32_epi16(both));
}

RADAM_VEC F decode_root(U code, F scale) {
  const F fraction = _mm512_mul_ps(_mm512_cvtepi32_ps(code), all(1.0f / 255.0f));
  return _mm512_mul_ps(scale, _mm512_mul_ps(fraction, fraction));
}
RADAM_VEC F decode_first(U code, F scale, F root) {
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(code), all(1.0f / 127.0f)), scale), root);
}

RADAM_VEC Pair decoded_roots(const void* array, int i, F scale) {
  const U codes = load_codes(array, i);
  return {decode_root(_mm512_and_si512(codes, constant<0xffu>()), scale),
          decode_root(_mm512_srli_epi32(codes, 8), scale)};
}
RADAM_VEC Pair decoded_firsts(const void* array, int i, F scale, const Pair& root) {
  const U codes = load_codes(array, i);
  return {decode_first(_mm512_srai_epi32(_mm512_slli_epi32(codes, 24), 24), scale, root.even),
          decode_first(_mm512_srai_epi32(_mm512_slli_epi32(codes, 16), 24), scale, root.odd)};
}

// stochastic_code
RADAM_VEC U stochastic_code(F c, U rand16, float limit) {
  c = _mm512_add_ps(c, _mm512_mul_ps(_mm512_cvtepi32_ps(rand16), all(0x1p-16f)));
  return _mm512_cvttps_epi32(
      _mm512_min_ps(_mm512_max_ps(c, _mm512_setzero_ps()), all(limit)));  // max returns its second operand for a NaN
}

// FirstCode::quotient
RADAM_VEC F quotient(F m, F root) {
  return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(root, _mm512_setzero_ps(), _CMP_GT_OQ), m, root);
}

// RootCode::encode; replaces `m` by FirstCode::quotient.
RADAM_VEC U encode_root(F root, F& m, F factor, F scale, U rand16) {
  U code = stochastic_code(_mm512_mul_ps(root_of(_mm512_abs_ps(root)), factor), rand16, 255.0f);
  const __mmask16 positive = _mm512_cmp_ps_mask(root, _mm512_setzero_ps(), _CMP_GT_OQ);
  code = _mm512_mask_max_epi32(code, positive, code, constant<1u>());
  m = quotient(m, decode_root(code, scale));
  return code;
}
RADAM_VEC Codes encode_roots(const Pair& root, Pair& m, F factor, F scale, U rand16) {
  return {encode_root(root.even, m.even, factor, scale, even_of(rand16)),
          encode_root(root.odd, m.odd, factor, scale, odd_of(rand16))};
}

// FirstCode::encode
RADAM_VEC U encode_first(F quotient, F factor, U rand16) {
  const U code = stochastic_code(_mm512_mul_ps(_mm512_abs_ps(quotient), factor), rand16, 127.0f);
  const __mmask16 negative = _mm512_cmp_ps_mask(quotient, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mask_sub_epi32(code, negative, _mm512_setzero_si512(), code);
}
RADAM_VEC Codes encode_firsts(const Pair& quotient, F factor, U rand16) {
  return {encode_first(quotient.even, factor, even_of(rand16)), encode_first(quotient.odd, factor, odd_of(rand16))};
}

// HalfRoot::encode, before rounding.
RADAM_VEC F fourth_root(F root) {
  const F fourth = root_of(root);
  const __mmask16 positive = _mm512_cmp_ps_mask(fourth, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mask_max_ps(fourth, positive, fourth, all(HalfRoot::kMinRoot));
}
RADAM_VEC Pair fourth_roots(const Pair& root) { return {fourth_root(root.even), fourth_root(root.odd)}; }

// HalfFirst::limited
RADAM_VEC F limited(F x) {
  constexpr uint32_t kBeyond = HalfFirst::kLargest + 1;
  const U above = _mm512_sub_epi32(magnitude_bits(x), constant<kBeyond>());
  const __mmask16 is_too_large = _mm512_cmplt_epu32_mask(above, constant<kInfinity - kBeyond>());
  constexpr int kSelect = 0xca;
  const U cut = _mm512_ternarylogic_epi32(constant<kMagnitude>(), constant<HalfFirst::kLargest>(), bits_of(x), kSelect);
  return _mm512_mask_mov_ps(x, is_too_large, of_bits(cut));
}
// HalfFirst::encode, before rounding; `fourth` are the stored fourth roots of the second moment.
RADAM_VEC Pair half_quotients(const Pair& m, const Pair& fourth) {
  const Pair root = product(fourth, fourth);
  return {limited(quotient(m.even, root.even)), limited(quotient(m.odd, root.odd))};
}

// The larger magnitudes of `largest` and a pair, as bits.
RADAM_VEC U larger(U largest, const Pair& x) {
  return _mm512_max_epu32(largest, _mm512_max_epu32(magnitude_bits(x.even), magnitude_bits(x.odd)));
}

}  // namespace radam_fused::avx512
#endif
