// 8-bit codes and float16 moments, sixteen at once in AVX-512: RootCode, FirstCode, HalfRoot and HalfFirst. Must match
// numerics/quantization.h bit for bit; the comments name the functions there.
#pragma once

#include "cpu/avx512/vec.h"

#if RADAM_X86
namespace radam_fused::avx512 {

// Two consecutive codes per 32 bits.
RADAM_VEC U load_codes(const void* array, int i) {
  return _mm512_cvtepu16_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(array) + i)));
}

// The codes of a pair as mantissas of floats, of which kBase has the upper bytes.
template <uint32_t kBase>
RADAM_VEC Pair codes_as_mantissas(U codes) {
  constexpr int kAndOr = 0xea;  // the first and second, or the third
  return {of_bits(_mm512_ternarylogic_epi32(codes, constant<0xffu>(), constant<kBase>(), kAndOr)),
          of_bits(_mm512_or_si512(_mm512_srli_epi32(codes, 8), constant<kBase>()))};
}
RADAM_VEC Pair less(const Pair& x, float by) { return {_mm512_sub_ps(x.even, all(by)), _mm512_sub_ps(x.odd, all(by))}; }
RADAM_VEC Pair scaled(const Pair& x, F scale) { return {_mm512_mul_ps(x.even, scale), _mm512_mul_ps(x.odd, scale)}; }

// RootCode::octaves
RADAM_VEC F doubled_exponent(F x) { return of_bits(_mm512_slli_epi32(bits_of(x), 1)); }
RADAM_VEC Pair octaves_of(const void* array, int i) {
  const Pair codes = less(codes_as_mantissas<0x2b000000u>(load_codes(array, i)), 0x1p-41f);
  return {doubled_exponent(codes.even), doubled_exponent(codes.odd)};
}

// FirstCode::decode
RADAM_VEC F power_of(F octaves) {
  return of_bits(_mm512_and_si512(bits_of(octaves), constant<FirstCode::kExponent>()));
}
RADAM_VEC Pair decoded_firsts(const void* array, int i, F scale, const Pair& octaves) {
  const U codes = _mm512_xor_si512(load_codes(array, i), constant<0x8080u>());  // plus 128
  const Pair x = scaled(less(codes_as_mantissas<0x4b000000u>(codes), 0x1p23f + 128.0f), scale);
  return product(x, {power_of(octaves.even), power_of(octaves.odd)});
}

// The random numbers of a pair without their two low bits, which carry nothing into a number with 14 bits after the
// point.
struct Rand14 {
  U even, odd;

  explicit RADAM_VEC Rand14(U rand16)
      : even(_mm512_and_si512(_mm512_srli_epi32(rand16, 2), constant<0x3fffu>())), odd(_mm512_srli_epi32(rand16, 18)) {}
};
// stochastic_code, two bits further right: the code is in bits 14 to 21.
RADAM_VEC U stochastic_code(F c, float offset, U rand14) {
  return _mm512_add_epi32(bits_of(_mm512_add_ps(c, all(offset))), rand14);
}
// Stores the codes of a pair, masked as the block's codes.
RADAM_VEC void store_codes(void* array, int i, U even, U odd, U codes) {
  constexpr int kSelect = 0xca;
  const U both =
      _mm512_ternarylogic_epi32(constant<0xffu>(), _mm512_srli_epi32(even, 14), _mm512_srli_epi32(odd, 6), kSelect);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<char*>(array) + i),
                      _mm512_cvtepi32_epi16(_mm512_and_si512(both, codes)));
}

// RootCode::encode; replaces `m` by FirstCode::quotient.
RADAM_VEC U encode_root(F root, F& m, F factor, U rand14) {
  constexpr int kAndOr = 0xea;
  const F c = of_bits(_mm512_srli_epi32(bits_of(_mm512_mul_ps(root, factor)), 1));
  const F least = _mm512_min_ps(root, all(RootCode::kUnit));
  const U fixed = stochastic_code(_mm512_max_ps(c, least), RootCode::kOffset, rand14);
  const F code = of_bits(
      _mm512_ternarylogic_epi32(_mm512_srli_epi32(fixed, 14), constant<0xffu>(), constant<0x2b000000u>(), kAndOr));
  const U power = bits_of(power_of(doubled_exponent(_mm512_sub_ps(code, all(0x1p-41f)))));
  m = _mm512_mul_ps(m, of_bits(_mm512_sub_epi32(constant<0x80000000u>(), power)));
  return fixed;
}
RADAM_VEC void store_roots(void* array, int i, const Pair& root, Pair& m, const BlockScale& scale, U rand16) {
  const F factor = all(scale.factor);
  const Rand14 random(rand16);
  const U even = encode_root(root.even, m.even, factor, random.even);
  const U odd = encode_root(root.odd, m.odd, factor, random.odd);
  store_codes(array, i, even, odd, _mm512_set1_epi32(int(scale.codes)));
}

// FirstCode::encode
RADAM_VEC void store_firsts(void* array, int i, const Pair& quotient, const BlockScale& scale, U rand16) {
  const Pair c = scaled(quotient, all(scale.factor));
  const Rand14 random(rand16);
  store_codes(array, i, stochastic_code(c.even, FirstCode::kOffset, random.even),
              stochastic_code(c.odd, FirstCode::kOffset, random.odd), _mm512_set1_epi32(int(scale.codes)));
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
