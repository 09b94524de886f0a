// The mathematics of a step, once for the host and the device: the lines of the numeric contract (docs/design.md).
// Every operation is rounded by itself: compile with -ffp-contract=off, -fmad=false, and never with fast-math.
#pragma once

#include <cmath>
#include <type_traits>

#include "numerics/float_formats.h"

namespace radam_fused {

// Columns of a row of the rows table, which Python fills (radam_fused/numerics/scalars.py, class Row).
constexpr int kScalarColumns = 11;

// What a parameter of the stored type P computes in, which is also what its moments are stored in.
template <typename P>
using ComputeType = std::conditional_t<std::is_same_v<P, double>, double, float>;

// kSkipStep is no step at all: whoever walks the elements leaves them alone.
enum class UpdateRule : int { kUnrectified = 0, kRectified = 1, kNoParamUpdate = 2, kSkipStep = 3 };

// The scalars of one (group, step) pair, rounded once from float64 to the dtype T of the computation.
template <typename T>
struct StepScalars {
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T eps;
  T l2_decay;
  T decay_factor;  // lr * weight_decay where it is decoupled, else 0
  T step_size;
  T grad_scale_factor;
  UpdateRule direction;
  uint32_t step;  // t, and the seed: what stochastic rounding draws by
  uint32_t seed;

  static RADAM_HD StepScalars from(const double* columns) {
    return {T(columns[0]),        T(columns[1]),        T(columns[2]),
            T(columns[3]),        T(columns[4]),        T(columns[5]),
            T(columns[6]),        T(columns[7]),        UpdateRule(int(columns[8])),
            uint32_t(columns[9]), uint32_t(columns[10])};
  }
};

RADAM_HD float square_root(float x) { return sqrtf(x); }
RADAM_HD double square_root(double x) { return sqrt(x); }

// Which of its two lines a row takes, for either of two values: the same for all of its elements.
struct UpdateBranches {
  bool v_by_difference;  // the second moment's
  bool decays;           // the parameter's

  template <typename T>
  static RADAM_HD UpdateBranches of(const StepScalars<T>& scalars) {
    return {scalars.beta2 >= T(0.5), scalars.decay_factor != T(0)};
  }
};

// The second moment v after the step. Rounded to float32, beta2 and 1 - beta2 do not add up to 1, and products with
// both would settle beside the mean of the squares: from beta2 = 1/2 on v is moved by what it differs instead. Either
// line has one product with v and one sum with it, so where a loop meets both they cost two blends and no branch.
template <typename T>
RADAM_HD T second_moment(T v, T g, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  const T square = (scalars.one_minus_beta2 * g) * g;
  const T product = (branches.v_by_difference ? scalars.one_minus_beta2 : scalars.beta2) * v;
  return (branches.v_by_difference ? v : product) + (branches.v_by_difference ? square - product : square);
}

// One element's moments m = exp_avg and v = exp_avg_sq by its parameter p and gradient g; returns the direction d.
// The conditions are the same for a whole segment; compilers turn them into blends or hoist them out of the loop.
template <typename T>
RADAM_HD T update_moments(T p, T g, T& m, T& v, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  g = g * scalars.grad_scale_factor;
  g = scalars.l2_decay != T(0) ? g + scalars.l2_decay * p : g;
  m = m + scalars.one_minus_beta1 * (g - m);
  v = second_moment(v, g, scalars, branches);
  return scalars.direction == UpdateRule::kRectified ? m / (square_root(v) + scalars.eps) : m;
}

// What a step takes from the parameter p, by its direction d. Nothing is multiplied by 1 - decay: that is 1 in float32
// for a small decay. And without decay nothing is multiplied by decay: 0 times an infinite p would be a NaN.
template <typename T>
RADAM_HD T decrease(T p, T d, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  const T step = scalars.step_size * d;
  return branches.decays ? scalars.decay_factor * p + step : step;
}

// One element: its moments, and the step of its parameter.
template <typename T>
RADAM_HD void update_element(T& p, T g, T& m, T& v, const StepScalars<T>& scalars, const UpdateBranches& branches) {
  const T d = update_moments(p, g, m, v, scalars, branches);
  p = scalars.direction == UpdateRule::kNoParamUpdate ? p : p - decrease(p, d, scalars, branches);
}

}  // namespace radam_fused
