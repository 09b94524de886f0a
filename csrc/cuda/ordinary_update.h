// The update of several elements by the rectified rule, as nearly every step uses it: without the branches of
// update_moments (numerics/radam_update.h), and with one check of all operands. Must match it bit for bit.
#pragma once

#include "cuda/exact_division.h"
#include "numerics/radam_update.h"

namespace radam_fused {

// Whether a segment's elements may be updated so.
RADAM_HD bool is_ordinary(const StepScalars<float>& scalars) {
  return scalars.update_rule == UpdateRule::kRectified && scalars.beta2 >= 0.5f && scalars.l2_decay == 0.0f &&
         OrdinaryRange::has(scalars.eps);
}

// Updates parameters x, and moments m and v, by gradients g; also takes the roots of v. `compensated`: x becomes what
// is to be subtracted from the parameter. Whether no m, v or root is a NaN or infinite.
template <int N>
RADAM_HD bool update_ordinary(float* x, const float* g, float* m, float* v, float* root,
                              const StepScalars<float>& scalars, bool compensated = false) {
  float d[N];
  RADAM_UNROLL
  for (int i = 0; i < N; ++i) {
    const float scaled = g[i] * scalars.grad_scale_factor;
    m[i] = m[i] + scalars.one_minus_beta1 * (scaled - m[i]);
    v[i] = v[i] + ((scalars.one_minus_beta2 * scaled) * scaled - scalars.one_minus_beta2 * v[i]);
  }
  const bool ordinary = roots_and_quotients<N>(m, v, scalars.eps, root, d);
  const bool decays = scalars.decay_factor != 0.0f;
  RADAM_UNROLL
  for (int i = 0; i < N; ++i) {
    float taken = scalars.step_size * d[i];
    if (decays) taken = scalars.decay_factor * x[i] + taken;
    x[i] = compensated ? taken : x[i] - taken;
  }
  return ordinary;
}

// Whether none of N numbers is a NaN.
template <int N>
RADAM_HD bool are_numbers(const float* x) {
  bool numbers = true;
  RADAM_UNROLL
  for (int i = 0; i < N; ++i) numbers = numbers && x[i] == x[i];
  return numbers;
}

}  // namespace radam_fused
