// The update of one element, for host and device: the formulae of the numeric contract (docs/design.md).
// Must match radam_fused/backends/reference/update.py and radam_fused/backends/triton/step_kernel.py bit for bit.
// Every operation is rounded by itself: compile with -ffp-contract=off, -fmad=false, and never with fast-math.
#pragma once

#include <cmath>
#include <type_traits>

#include "numerics/dtypes.h"

namespace radam_fused {

// The columns of the scalars tensor, in float64. Must match radam_fused/numerics/scalars.py column by column.
enum ScalarColumn : int {
  kOneMinusBeta1,
  kBeta2,
  kOneMinusBeta2,
  kEps,
  kL2Decay,
  kDecayFactor,
  kStepSize,
  kGradScaleFactor,
  kUpdateRule,
  kStep,
  kSeed,
  kScalarColumns
};

// The dtype of the arithmetic, and of full-precision moments, for parameters stored as P.
template <typename P>
using ComputeType = std::conditional_t<std::is_same_v<P, double>, double, float>;

// What is subtracted from a parameter: a multiple of m (kUnrectified), of m / (sqrt(v) + eps) (kRectified), or nothing,
// while the moments are updated (kNoParamUpdate). kSkipStep: no element is updated.
enum class UpdateRule : int { kUnrectified = 0, kRectified = 1, kNoParamUpdate = 2, kSkipStep = 3 };

// The scalars of one (group, step) pair, rounded once from float64 to the dtype T of the arithmetic.
template <typename T>
struct StepScalars {
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T eps;
  T l2_decay;           // added to the gradient, times the parameter; 0 if the decay is decoupled
  T decay_factor;       // lr * weight_decay if the decay is decoupled, else 0
  T step_size;          // lr / (1 - beta1^t), rectified
  T grad_scale_factor;  // of gradient scaling, clipping and maximize
  UpdateRule update_rule;
  uint32_t step;  // step and seed: keys of the random numbers for stochastic rounding
  uint32_t seed;

  static RADAM_HD StepScalars from(const double* columns) {
    return {T(columns[kOneMinusBeta1]), T(columns[kBeta2]),           T(columns[kOneMinusBeta2]),
            T(columns[kEps]),           T(columns[kL2Decay]),         T(columns[kDecayFactor]),
            T(columns[kStepSize]),      T(columns[kGradScaleFactor]), UpdateRule(int(columns[kUpdateRule])),
            uint32_t(columns[kStep]),   uint32_t(columns[kSeed])};
  }
};

RADAM_HD float square_root(float x) { return sqrtf(x); }
RADAM_HD double square_root(double x) { return sqrt(x); }

// Which of its two formulae the second moment and the parameter use: the same for all elements of a segment.
struct UpdateBranches {
  bool v_by_difference;
  bool decays;  // the parameter, by decoupled weight decay

  template <typename T>
  static RADAM_HD UpdateBranches of(const StepScalars<T>& scalars) {
    return {scalars.beta2 >= T(0.5), scalars.decay_factor != T(0)};
  }
};

// The second moment v after the step. Rounded to float32, beta2 and 1 - beta2 do not add up to 1, so v as a sum of two
// products would converge to a wrong mean of the squares. From beta2 = 1/2 on v is therefore moved by a difference.
// Either formula has one product with v and one sum with it: a loop with both costs two blends and no branch.
template <typename T>
RADAM_HD T second_moment(T v, T g, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  const T square = (scalars.one_minus_beta2 * g) * g;
  const T product = (branches.v_by_difference ? scalars.one_minus_beta2 : scalars.beta2) * v;
  return (branches.v_by_difference ? v : product) + (branches.v_by_difference ? square - product : square);
}

// Updates the moments m = exp_avg and v = exp_avg_sq of one element, from its parameter p and gradient g; returns the
// direction d of the step. The conditions do not depend on the element; compilers hoist them or turn them into blends.
template <typename T>
RADAM_HD T update_moments(T p, T g, T& m, T& v, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  g = g * scalars.grad_scale_factor;
  g = scalars.l2_decay != T(0) ? g + scalars.l2_decay * p : g;
  m = m + scalars.one_minus_beta1 * (g - m);
  v = second_moment(v, g, scalars, branches);
  return scalars.update_rule == UpdateRule::kRectified ? m / (square_root(v) + scalars.eps) : m;
}

// What a step in direction d subtracts from the parameter p. There is no factor 1 - decay_factor, which rounds to 1 in
// float32 for a small decay; and no product with a decay_factor of 0, which would be a NaN for an infinite p.
template <typename T>
RADAM_HD T decrease(T p, T d, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  const T step = scalars.step_size * d;
  return branches.decays ? scalars.decay_factor * p + step : step;
}

// Updates one element: its moments, and its parameter as it is stored.
template <typename P, typename G, typename T>
RADAM_HD void update_element(P& p, G g, T& m, T& v, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  const T x = widen(p);
  const T d = update_moments(x, widen(g), m, v, scalars, branches);
  p = Narrow<P>::from(scalars.update_rule == UpdateRule::kNoParamUpdate ? x : x - decrease(x, d, scalars, branches));
}

}  // namespace radam_fused
