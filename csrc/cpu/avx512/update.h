// The update of sixteen elements at once in AVX-512, and reading and writing of parameters and master buffers. Must
// match numerics/radam_update.h and numerics/quantization.h bit for bit; the comments name the functions there.
#pragma once

#include "cpu/avx512/vec.h"
#include "numerics/radam_update.h"
#include "numerics/state_format.h"

#if RADAM_X86
namespace radam_fused::avx512 {

RADAM_VEC F second_moment(F v, F g, const StepScalars<float>& scalars) {
  const F square = _mm512_mul_ps(_mm512_mul_ps(all(scalars.one_minus_beta2), g), g);
  if (scalars.beta2 < 0.5f) return _mm512_add_ps(_mm512_mul_ps(all(scalars.beta2), v), square);
  return _mm512_add_ps(v, _mm512_sub_ps(square, _mm512_mul_ps(all(scalars.one_minus_beta2), v)));
}

RADAM_VEC F decrease(F x, F d, const StepScalars<float>& scalars) {
  const F step = _mm512_mul_ps(all(scalars.step_size), d);
  return scalars.decay_factor != 0.0f ? _mm512_add_ps(_mm512_mul_ps(all(scalars.decay_factor), x), step) : step;
}

// update_moments. Also computes the square root of v in `root`, if the update rule needs it or kRoot says that it will
// be stored.
template <bool kRoot>
RADAM_VEC F update_moments(F p, F g, F& m, F& v, F& root, const StepScalars<float>& scalars) {
  g = _mm512_mul_ps(g, all(scalars.grad_scale_factor));
  if (scalars.l2_decay != 0.0f) g = _mm512_add_ps(g, _mm512_mul_ps(all(scalars.l2_decay), p));
  m = _mm512_add_ps(m, _mm512_mul_ps(all(scalars.one_minus_beta1), _mm512_sub_ps(g, m)));
  v = second_moment(v, g, scalars);
  const bool adaptive = scalars.update_rule == UpdateRule::kRectified;
  if (kRoot || adaptive) root = root_of(v);
  return adaptive ? _mm512_div_ps(m, _mm512_add_ps(root, all(scalars.eps))) : m;
}

// Updates the parameter x; for MasterFormat::kKahan, x becomes what is to be subtracted from it.
template <bool kRoot>
RADAM_VEC void step(F& x, F g, F& m, F& v, F& root, const StepScalars<float>& scalars, bool compensated) {
  const F taken = decrease(x, update_moments<kRoot>(x, g, m, v, root, scalars), scalars);
  if (compensated) {
    x = taken;
  } else if (scalars.update_rule != UpdateRule::kNoParamUpdate) {
    x = _mm512_sub_ps(x, taken);
  }
}

template <bool kRoot>
RADAM_VEC void step(Pair& x, const Pair& g, Pair& m, Pair& v, Pair& root, const StepScalars<float>& scalars,
                    bool compensated) {
  step<kRoot>(x.even, g.even, m.even, v.even, root.even, scalars, compensated);
  step<kRoot>(x.odd, g.odd, m.odd, v.odd, root.odd, scalars, compensated);
}

// from_master
template <typename P>
RADAM_VEC Pair from_master(U written, const Pair& master) {
  const U differing = _mm512_xor_si512(param_of_master(P{}, master), written);
  const Pair taken = widened(P{}, written);
  return {_mm512_mask_mov_ps(taken.even, _mm512_testn_epi32_mask(differing, constant<0xffffu>()), master.even),
          _mm512_mask_mov_ps(taken.odd, _mm512_testn_epi32_mask(differing, constant<0xffff0000u>()), master.odd)};
}

template <typename P>
RADAM_VEC Pair read_as(const void* p, const void* master, MasterFormat format, int i) {
  if (format == MasterFormat::kFloat32) return from_master<P>(load_words(p, i), load_pair<float>(master, i));
  const Pair x = load_pair<P>(p, i);
  return format == MasterFormat::kKahan ? sum(x, load_pair<P>(master, i)) : x;
}

// join
RADAM_VEC Pair joined(const void* p, const void* low, int i) {
  const Pair high = load_pair<bfloat16>(p, i);
  const U words = load_words(low, i);
  const U even = _mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16), odd = _mm512_srai_epi32(words, 16);
  return {of_bits(_mm512_add_epi32(bits_of(high.even), even)), of_bits(_mm512_add_epi32(bits_of(high.odd), odd))};
}

RADAM_VEC Pair read_parameter(const void* p, const void* master, const StateFormat& format, int i) {
  if (format.master == MasterFormat::kSplit) return joined(p, master, i);
  if (format.param_dtype == kBFloat16) return read_as<bfloat16>(p, master, format.master, i);
  if (format.param_dtype == kFloat16) return read_as<float16>(p, master, format.master, i);
  return load_pair<float>(p, i);
}

// compensate
RADAM_VEC F unless_infinite(F x, F rest) {
  return _mm512_maskz_mov_ps(_mm512_cmpneq_epi32_mask(magnitude_bits(x), constant<kInfinity>()), rest);
}
template <typename P>
RADAM_VEC void compensate(void* p, void* master, const Pair& decrease, int i) {
  const Pair before = load_pair<P>(p, i);
  const Pair update = difference(load_pair<P>(master, i), decrease);
  const U after = narrowed(P{}, sum(before, update));
  store_words(p, i, after);
  const Pair stored = widened(P{}, after);
  const Pair rest = sum(difference(before, stored), update);
  store_words(master, i,
              narrowed(P{}, {unless_infinite(stored.even, rest.even), unless_infinite(stored.odd, rest.odd)}));
}

template <typename P, typename Random>
RADAM_VEC void write_as(void* p, void* master, const StateFormat& format, const Pair& x, const Random& random, int i) {
  if (format.master == MasterFormat::kKahan) {
    compensate<P>(p, master, x, i);
  } else if (format.master == MasterFormat::kFloat32) {
    store_words(p, i, param_of_master(P{}, x));
    store_floats(master, i, x);
  } else if (format.stochastic) {
    store_words(p, i, stochastic(P{}, x, random.at(i)));
  } else {
    store_words(p, i, narrowed(P{}, x));
  }
}

// Parameter<bfloat16> and low_bits
RADAM_VEC void split(void* p, void* master, const Pair& x, int i) {
  store_words(p, i, param_of_master(bfloat16{}, x));
  constexpr __mmask32 kEven = 0x55555555;
  U low = _mm512_mask_blend_epi16(kEven, _mm512_slli_epi32(bits_of(x.odd), 16), bits_of(x.even));
  if (_mm512_cmp_ps_mask(x.even, x.odd, _CMP_UNORD_Q)) {
    low = _mm512_mask_mov_epi32(_mm512_and_si512(low, constant<0xffff0000u>()), is_number(x.even), low);
    low = _mm512_mask_mov_epi32(_mm512_and_si512(low, constant<0xffffu>()), is_number(x.odd), low);
  }
  store_words(master, i, low);
}

template <typename Random>
RADAM_VEC void write_parameter(void* p, void* master, const StateFormat& format, const Pair& x, const Random& random,
                               int i) {
  if (format.master == MasterFormat::kSplit) {
    split(p, master, x, i);
  } else if (format.param_dtype == kBFloat16) {
    write_as<bfloat16>(p, master, format, x, random, i);
  } else if (format.param_dtype == kFloat16) {
    write_as<float16>(p, master, format, x, random, i);
  } else {
    store_floats(p, i, x);
  }
}

// kNoParamUpdate leaves the parameter as it is, bit for bit; a master copy takes over what user code has written to it.
template <typename Random>
RADAM_VEC void write_or_hold(void* p, void* master, const StateFormat& format, const Pair& x, const Random& random,
                             const StepScalars<float>& scalars, int i) {
  if (scalars.update_rule != UpdateRule::kNoParamUpdate) {
    write_parameter(p, master, format, x, random, i);
  } else if (format.master == MasterFormat::kFloat32) {
    store_floats(master, i, x);
  }
}

}  // namespace radam_fused::avx512
#endif
