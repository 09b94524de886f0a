// The mathematics of a step, once for the host and the device: the lines of the numeric contract (docs/design.md).
// Every operation is rounded by itself: compile with -ffp-contract=off, -fmad=false, and never with fast-math.
#pragma once

#include <cmath>
#include <type_traits>

#include "numeric.h"

namespace radam_fused {

// Columns of a row of the rows table, which Python fills (radam_fused/rows.py, class Row).
constexpr int kRowColumns = 11;

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
  T decay;        // lr * weight_decay where it is decoupled: 1 - shrink, for updates that are added up
  uint32_t step;  // t, and the seed: what stochastic rounding draws by
  uint32_t seed;

  static RADAM_HD Row from(const double* columns) {
    return {T(columns[0]),       T(columns[1]),        T(columns[2]),
            T(columns[3]),       T(columns[4]),        T(columns[5]),
            T(columns[6]),       T(columns[7]),        Direction(int(columns[8])),
            T(1.0 - columns[5]), uint32_t(columns[9]), uint32_t(columns[10])};
  }
};

RADAM_HD float square_root(float x) { return sqrtf(x); }
RADAM_HD double square_root(double x) { return sqrt(x); }

// One element's moments m = exp_avg and v = exp_avg_sq by its parameter p and gradient g; returns the direction d.
// The conditions are the same for a whole segment; compilers turn them into blends or hoist them out of the loop.
template <typename T>
RADAM_HD T advance(T p, T g, T& m, T& v, const Row<T>& row) {
  g = g * row.grad_factor;
  g = row.coupled_decay != T(0) ? g + row.coupled_decay * p : g;
  m = m + row.one_minus_beta1 * (g - m);
  v = row.beta2 * v + (row.one_minus_beta2 * g) * g;
  return row.direction == Direction::kAdaptive ? m / (square_root(v) + row.eps) : m;
}

// One element: its moments, and the step of its parameter.
template <typename T>
RADAM_HD void update_element(T& p, T g, T& m, T& v, const Row<T>& row) {
  const T d = advance(p, g, m, v, row);
  p = row.direction == Direction::kHold ? p : p * row.shrink - row.alpha * d;
}

}  // namespace radam_fused
