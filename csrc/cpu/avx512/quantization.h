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

// RootCode::octaves
RADAM_VEC F octaves(U code) {
  const F c = _mm512_sub_ps(of_bits(_mm512_or_si512(code, constant<0x2b000000u>())), all(0x1p-41f));
  return of_bits(_mm512_slli_epi32(bits_of(c), 1));
}
RADAM_VEC Pair octaves_of(const void* array, int i) {
  const U codes = load_codes(array, i);
  return {octaves(_mm512_and_si512(codes, constant<0xffu>())), octaves(_mm512_srli_epi32(codes, 8))};
}
RADAM_VEC Pair scaled(const Pair& x, F scale) { return {_mm512_mul_ps(x.even, scale), _mm512_mul_ps(x.odd, scale)}; }

// FirstCode::decode
RADAM_VEC F power_of(F octaves) {
  return of_bits(_mm512_and_si512(bits_of(octaves), constant<FirstCode::kExponent>()));
}
RADAM_VEC F decode_first(U code, F scale, F octaves) {
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(code), scale), power_of(octaves));
}
RADAM_VEC Pair decoded_firsts(const void* array, int i, F scale, const Pair& octaves) {
  const U codes = load_codes(array, i);
  return {decode_first(_mm512_srai_epi32(_mm512_slli_epi32(codes, 24), 24), scale, octaves.even),
          decode_first(_mm512_srai_epi32(_mm512_slli_epi32(codes, 16), 24), scale, octaves.odd)};
}

// stochastic_code and code_of
RADAM_VEC U stochastic_code(F c, float offset, U rand16) {
  const U fixed = _mm512_add_epi32(_mm512_slli_epi32(bits_of(_mm512_add_ps(c, all(offset))), 2), rand16);
  return _mm512_and_si512(_mm512_srli_epi32(fixed, 16), constant<0xffu>());
}

// RootCode::encode, masked as the block's codes; replaces `m` by FirstCode::quotient.
RADAM_VEC U encode_root(F root, F& m, F factor, U codes, U rand16) {
  const F c = of_bits(_mm512_srli_epi32(bits_of(_mm512_mul_ps(root, factor)), 1));
  const F least = _mm512_min_ps(root, all(RootCode::kUnit));
  const U code = _mm512_and_si512(stochastic_code(_mm512_max_ps(c, least), RootCode::kOffset, rand16), codes);
  const U power = bits_of(power_of(octaves(code)));
  m = _mm512_mul_ps(m, of_bits(_mm512_sub_epi32(constant<0x80000000u>(), power)));
  return code;
}
RADAM_VEC Codes encode_roots(const Pair& root, Pair& m, const BlockScale& scale, U rand16) {
  const F factor = all(scale.factor);
  const U codes = _mm512_set1_epi32(int(scale.codes));
  return {encode_root(root.even, m.even, factor, codes, even_of(rand16)),
          encode_root(root.odd, m.odd, factor, codes, odd_of(rand16))};
}

// FirstCode::encode, masked as the block's codes.
RADAM_VEC Codes encode_firsts(const Pair& quotient, const BlockScale& scale, U rand16) {
  const Pair c = scaled(quotient, all(scale.factor));
  const U codes = _mm512_set1_epi32(int(scale.codes));
  return {_mm512_and_si512(stochastic_code(c.even, FirstCode::kOffset, even_of(rand16)), codes),
          _mm512_and_si512(stochastic_code(c.odd, FirstCode::kOffset, odd_of(rand16)), codes)};
}

// HalfFirst::quotient
RADAM_VEC F quotient(F m, F root) {
  return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(root, _mm512_setzero_ps(), _CMP_GT_OQ), m, root);
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
