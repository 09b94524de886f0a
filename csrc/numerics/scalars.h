// The scalars of a step, in float64, so that host and device give the same bits: only sums, products, quotients and
// square roots, each rounded by itself. Must match radam_fused/rectification.py and radam_fused/numerics/scalars.py
// operation by operation.
#pragma once

#include "numerics/dtypes.h"
#include "numerics/radam_update.h"

namespace radam_fused {

// 1 - exp(-y) for y >= 0: tanh(y / 128) as Lambert's continued fraction, then e + e (1 - e) six times.
RADAM_HD double one_minus_exp(double y) {
  const double half = (y > 40.0 ? 40.0 : y) * 0.0078125;
  const double square = half * half;
  double tail = 13.0;
  for (int odd = 11; odd > 0; odd -= 2) tail = double(odd) + square / tail;
  const double tanh = half / tail;
  double e = 2.0 * tanh / (1.0 + tanh);
  for (int i = 0; i < 6; ++i) e = e + e * (1.0 - e);
  return e;
}

// coth(y) - 1/y for 0 <= y < 1, as Lambert's continued fraction.
RADAM_HD double langevin(double y) {
  const double square = y * y;
  double tail = 21.0;
  for (int odd = 19; odd > 1; odd -= 2) tail = double(odd) + square / tail;
  return y / tail;
}

// The length of the approximated SMA at step t, with x = -log(beta2) and c2 = 1 - beta2^t.
RADAM_HD double rho(double t, double x, double c2, double rho_inf) {
  const double y = t * x;
  if (y < 2.0) return t + langevin(0.5 * x) - t * langevin(0.5 * y);
  return rho_inf - 2.0 * t * ((1.0 - c2) / c2);
}

// Var[psi] of Theorem 1 for rho > 4: the asymptotic series above kSeriesFrom, and the recurrence below.
RADAM_HD double exact_variance(double rho) {
  constexpr int kLongest = 23;  // steps from rho = 4 to kSeriesFrom
  constexpr double kSeriesFrom = 50.0;
  constexpr double kSeries[] = {15.0 / 4,
                                83.0 / 8,
                                1605.0 / 64,
                                7163.0 / 128,
                                60795.0 / 512,
                                250819.0 / 1024,
                                8183085.0 / 16384,
                                33204863.0 / 32768,
                                267051345.0 / 131072,
                                1062888709.0 / 262144,
                                17061862545.0 / 2097152};
  const double distance = (kSeriesFrom - rho) / 2.0;
  const double steps = distance > 0.0 ? ceil(distance) : 0.0;
  double at = rho + 2.0 * steps;
  double tail = 0.0;
  RADAM_UNROLL
  for (int k = 10; k >= 0; --k) tail = (tail + kSeries[k]) / at;
  double value = (1.0 + tail) / (2.0 * at);
  for (int k = steps < kLongest ? int(steps) - 1 : kLongest - 1; k >= 0; --k) {
    at = rho + 2.0 * double(k);
    value = at / ((at - 1.0) * (at - 1.0)) * (1.0 / (at - 2.0) + value * (at / (at + 2.0)) * at);
  }
  return value;
}

// rectification= of a parameter group: the index into KINDS of radam_fused/rectification.py.
constexpr double kExactRectification = 1.0, kNoRectification = 2.0;

// The hyperparameters of a parameter group and what follows from them alone. Must match radam_fused/numerics/scalars.py
// field by field.
struct GroupScalars {
  double lr, one_minus_beta1, decay_rate1, beta2, one_minus_beta2, decay_rate2, rho_inf, limit_variance, rho_threshold,
      eps, l2_decay, decoupled_decay, sign, unrectified_rule, kind, seed;
};
constexpr int kGroupColumns = sizeof(GroupScalars) / sizeof(double);
static_assert(kGroupColumns == 16, "as many as in radam_fused/numerics/scalars.py");

// r_t, to first order or exact, for rho_t above the threshold.
RADAM_HD double rectification_factor(double rho_t, const GroupScalars& h) {
  if (h.kind == kExactRectification) return sqrt(h.limit_variance / exact_variance(rho_t));
  return sqrt(((rho_t - 4.0) / (h.rho_inf - 4.0)) * ((rho_t - 2.0) / (h.rho_inf - 2.0)) * (h.rho_inf / rho_t));
}

// What all scalars of a step have in common.
struct CommonScalars {
  double clip_coefficient;  // of gradient clipping, at most 1
  double grad_scale;        // by which the loss was multiplied
  bool skip;
};

// The scalars of a group's parameters that take their step t at this learning rate.
RADAM_HD void compute_scalars(double* columns, const GroupScalars& h, double t, double lr,
                              const CommonScalars& common) {
  const double c1 = one_minus_exp(t * h.decay_rate1);
  const double c2 = one_minus_exp(t * h.decay_rate2);
  const double root_c2 = sqrt(c2);
  const bool adam = h.kind == kNoRectification;
  const double rho_t = adam ? 0.0 : rho(t, h.decay_rate2, c2, h.rho_inf);
  const bool rectified = adam || rho_t > h.rho_threshold;
  double step_size = lr / c1;
  double rule = h.unrectified_rule;
  if (rectified) {
    const double r_t = adam ? 1.0 : rectification_factor(rho_t, h);
    step_size = lr * r_t * root_c2 / c1;
    rule = double(UpdateRule::kRectified);
  } else if (rule == double(UpdateRule::kNoParamUpdate)) {
    step_size = 0.0;
  }
  columns[kOneMinusBeta1] = h.one_minus_beta1;
  columns[kBeta2] = h.beta2;
  columns[kOneMinusBeta2] = h.one_minus_beta2;
  columns[kEps] = adam ? h.eps * root_c2 : h.eps;
  columns[kL2Decay] = h.l2_decay;
  columns[kDecayFactor] = lr * h.decoupled_decay;
  columns[kStepSize] = step_size;
  columns[kGradScaleFactor] = h.sign * common.clip_coefficient / common.grad_scale;
  columns[kUpdateRule] = common.skip ? double(UpdateRule::kSkipStep) : rule;
  columns[kStep] = t;
  columns[kSeed] = h.seed;
}

}  // namespace radam_fused
