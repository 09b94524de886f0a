// A step of sixteen elements at once, in AVX-512: update.h, and the parameter as stored.h has it.
#pragma once

#include "cpu/avx512/vec.h"
#include "numerics/radam_update.h"
#include "numerics/state_format.h"

#if RADAM_X86
namespace radam_fused::lanes {

RADAM_LANES F second_moment(F v, F g, const Row<float>& row) {
  const F square = _mm512_mul_ps(_mm512_mul_ps(all(row.one_minus_beta2), g), g);
  if (row.beta2 < 0.5f) return _mm512_add_ps(_mm512_mul_ps(all(row.beta2), v), square);
  return _mm512_add_ps(v, _mm512_sub_ps(square, _mm512_mul_ps(all(row.one_minus_beta2), v)));
}

RADAM_LANES F decrease(F x, F d, const Row<float>& row) {
  const F step = _mm512_mul_ps(all(row.alpha), d);
  return row.decay != 0.0f ? _mm512_add_ps(_mm512_mul_ps(all(row.decay), x), step) : step;
}

// advance, and in `root` the second moment's, if that is what the direction takes or what will be stored.
template <bool kRoot>
RADAM_LANES F advance(F p, F g, F& m, F& v, F& root, const Row<float>& row) {
  g = _mm512_mul_ps(g, all(row.grad_factor));
  if (row.coupled_decay != 0.0f) g = _mm512_add_ps(g, _mm512_mul_ps(all(row.coupled_decay), p));
  m = _mm512_add_ps(m, _mm512_mul_ps(all(row.one_minus_beta1), _mm512_sub_ps(g, m)));
  v = second_moment(v, g, row);
  const bool adaptive = row.direction == Direction::kAdaptive;
  if (kRoot || adaptive) root = root_of(v);
  return adaptive ? _mm512_div_ps(m, _mm512_add_ps(root, all(row.eps))) : m;
}

// The parameter's step; under Master::kKahan what is to be taken from it.
template <bool kRoot>
RADAM_LANES void step(F& x, F g, F& m, F& v, F& root, const Row<float>& row, bool compensated) {
  const F taken = decrease(x, advance<kRoot>(x, g, m, v, root, row), row);
  if (compensated) {
    x = taken;
  } else if (row.direction != Direction::kHold) {
    x = _mm512_sub_ps(x, taken);
  }
}

template <bool kRoot>
RADAM_LANES void step(Pair& x, const Pair& g, Pair& m, Pair& v, Pair& root, const Row<float>& row, bool compensated) {
  step<kRoot>(x.even, g.even, m.even, v.even, root.even, row, compensated);
  step<kRoot>(x.odd, g.odd, m.odd, v.odd, root.odd, row, compensated);
}

// from_master
template <typename P>
RADAM_LANES Pair from_master(U written, const Pair& master) {
  const U differing = _mm512_xor_si512(as_parameter(P{}, master), written);
  const Pair taken = widened(P{}, written);
  return {_mm512_mask_mov_ps(taken.even, _mm512_testn_epi32_mask(differing, constant<0xffffu>()), master.even),
          _mm512_mask_mov_ps(taken.odd, _mm512_testn_epi32_mask(differing, constant<0xffff0000u>()), master.odd)};
}

template <typename P>
RADAM_LANES Pair read_as(const void* p, const void* residue, Master master, int i) {
  if (master == Master::kFloat32) return from_master<P>(words_at(p, i), pair_at<float>(residue, i));
  const Pair x = pair_at<P>(p, i);
  return master == Master::kKahan ? sum(x, pair_at<P>(residue, i)) : x;
}

// join
RADAM_LANES Pair joined(const void* p, const void* low, int i) {
  const Pair high = pair_at<bfloat16>(p, i);
  const U words = words_at(low, i);
  const U even = _mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16), odd = _mm512_srai_epi32(words, 16);
  return {of_bits(_mm512_add_epi32(bits_of(high.even), even)), of_bits(_mm512_add_epi32(bits_of(high.odd), odd))};
}

RADAM_LANES Pair read_parameter(const void* p, const void* residue, const Forms& forms, int i) {
  if (forms.master == Master::kSplit) return joined(p, residue, i);
  if (forms.param_dtype == kBFloat16) return read_as<bfloat16>(p, residue, forms.master, i);
  if (forms.param_dtype == kFloat16) return read_as<float16>(p, residue, forms.master, i);
  return pair_at<float>(p, i);
}

// compensate
RADAM_LANES F unless_infinite(F x, F rest) {
  return _mm512_maskz_mov_ps(_mm512_cmpneq_epi32_mask(magnitude_bits(x), constant<kInfinity>()), rest);
}
template <typename P>
RADAM_LANES void compensate(void* p, void* residue, const Pair& decrease, int i) {
  const Pair before = pair_at<P>(p, i);
  const Pair update = difference(pair_at<P>(residue, i), decrease);
  const U after = narrowed(P{}, sum(before, update));
  set_words(p, i, after);
  const Pair stored = widened(P{}, after);
  const Pair rest = sum(difference(before, stored), update);
  set_words(residue, i,
            narrowed(P{}, {unless_infinite(stored.even, rest.even), unless_infinite(stored.odd, rest.odd)}));
}

template <typename P, typename Random>
RADAM_LANES void write_as(void* p, void* residue, const Forms& forms, const Pair& x, const Random& draws, int i) {
  if (forms.master == Master::kKahan) {
    compensate<P>(p, residue, x, i);
  } else if (forms.master == Master::kFloat32) {
    set_words(p, i, as_parameter(P{}, x));
    set_floats(residue, i, x);
  } else if (forms.stochastic) {
    set_words(p, i, drawn(P{}, x, draws.at(i)));
  } else {
    set_words(p, i, narrowed(P{}, x));
  }
}

// Parameter<bfloat16> and low_bits
RADAM_LANES void split(void* p, void* residue, const Pair& x, int i) {
  set_words(p, i, as_parameter(bfloat16{}, x));
  constexpr __mmask32 kEven = 0x55555555;
  U low = _mm512_mask_blend_epi16(kEven, _mm512_slli_epi32(bits_of(x.odd), 16), bits_of(x.even));
  if (_mm512_cmp_ps_mask(x.even, x.odd, _CMP_UNORD_Q)) {
    low = _mm512_mask_mov_epi32(_mm512_and_si512(low, constant<0xffff0000u>()), is_number(x.even), low);
    low = _mm512_mask_mov_epi32(_mm512_and_si512(low, constant<0xffffu>()), is_number(x.odd), low);
  }
  set_words(residue, i, low);
}

template <typename Random>
RADAM_LANES void write_parameter(void* p, void* residue, const Forms& forms, const Pair& x, const Random& draws,
                                 int i) {
  if (forms.master == Master::kSplit) {
    split(p, residue, x, i);
  } else if (forms.param_dtype == kBFloat16) {
    write_as<bfloat16>(p, residue, forms, x, draws, i);
  } else if (forms.param_dtype == kFloat16) {
    write_as<float16>(p, residue, forms, x, draws, i);
  } else {
    set_floats(p, i, x);
  }
}

// A step that holds leaves the parameter bit for bit; a copy takes over what somebody has written to it.
template <typename Random>
RADAM_LANES void write_or_hold(void* p, void* residue, const Forms& forms, const Pair& x, const Random& draws,
                               const Row<float>& row, int i) {
  if (row.direction != Direction::kHold) {
    write_parameter(p, residue, forms, x, draws, i);
  } else if (forms.master == Master::kFloat32) {
    set_floats(residue, i, x);
  }
}

}  // namespace radam_fused::lanes
#endif
