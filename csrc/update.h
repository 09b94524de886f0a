// The mathematics of a step, once for the host and the device: the lines of the numeric contract (docs/design.md).
// Every operation is rounded by itself: compile with -ffp-contract=off, -fmad=false, and never with fast-math.
#pragma once

#include <cmath>
#include <type_traits>

#include "numeric.h"

namespace radam_fused {

// Columns of a row of the rows table, which Python fills (radam_fused/rows.py, class Row).
constexpr int kRowColumns = 9;

// What a parameter of the stored type P computes in, which is also what its moments are stored in.
template <typename P>
using Computed = std::conditional_t<std::is_same_v<P, double>, double, float>;

// kSkip is no step at all: whoever walks the elements leaves them alone.
enum class Direction : int { kMomentum = 0, kAdaptive = 1, kHold = 2, kSkip = 3 };

// The scalars of one (group, step) pair, rounded once from float64 to the dtype T of the computation.
template <typename T>
struct Row {
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T eps;
  T coupled_decay;
  T shrink;
  T alpha;
  T grad_factor;
  Direction direction;

  static RADAM_HD Row from(const double* columns) {
    return {T(columns[0]), T(columns[1]), T(columns[2]),
            T(columns[3]), T(columns[4]), T(columns[5]),
            T(columns[6]), T(columns[7]), Direction(int(columns[8]))};
  }
};

RADAM_HD float square_root(float x) { return sqrtf(x); }
RADAM_HD double square_root(double x) { return sqrt(x); }

// One element: parameter p, gradient g, moments m = exp_avg and v = exp_avg_sq.
// The conditions are the same for a whole segment; compilers turn them into blends or hoist them out of the loop.
template <typename T>
RADAM_HD void update_element(T& p, T g, T& m, T& v, const Row<T>& row) {
  g = g * row.grad_factor;
  g = row.coupled_decay != T(0) ? g + row.coupled_decay * p : g;
  m = m + row.one_minus_beta1 * (g - m);
  v = row.beta2 * v + (row.one_minus_beta2 * g) * g;
  const T d = row.direction == Direction::kAdaptive ? m / (square_root(v) + row.eps) : m;
  p = row.direction == Direction::kHold ? p : p * row.shrink - row.alpha * d;
}

}  // namespace radam_fused
