// The rows of a step, made where its tensors are (radam_fused/backends/ops.py, rows): first the norm of the gradients,
// then each row by the steps taken so far, then the count of this one.
#pragma once

#include "numerics/grad_norm_order.h"
#include "numerics/scalars.h"
#include "numerics/thread_group.h"

namespace radam_fused {

struct ScalarsArguments {
  const GroupScalars* group_scalars;  // one a group
  const int64_t* pairs;               // two a row: its group, and a segment whose step count it goes by
  int64_t scalar_count;
  const float* counted;
  float* steps;   // taken, rounded, as optimizer.state shows it
  double* taken;  // how many steps each segment has taken
  int64_t segment_count;
  const void* lr;  // null: the ones in hyper
  int64_t lr_stride;
  bool lr_is_double;
  const double* partial_sums;  // partial_sum_rows lines of kPartialSums; null: no clipping
  int64_t partial_sum_rows;
  double max_grad_norm;
  const float* grad_scale;  // or null
  const float* found_inf;   // or null
  double* scalars;          // written: kScalarColumns a row
  double* norm;             // written: one
};

RADAM_HD double learning_rate(const ScalarsArguments& arguments, int64_t group) {
  const int64_t at = group * arguments.lr_stride;
  if (arguments.lr == nullptr) return arguments.group_scalars[group].lr;
  return arguments.lr_is_double ? static_cast<const double*>(arguments.lr)[at]
                                : double(static_cast<const float*>(arguments.lr)[at]);
}

// Steps taken so far: the exact count, unless user code has written another into the float32 that shows it.
RADAM_HD double steps_taken(const ScalarsArguments& arguments, int64_t segment) {
  const double taken = arguments.taken[segment];
  const float shown = arguments.steps[segment];
  return shown == float(taken) ? taken : double(shown);
}

// What the team keeps together.
struct ScalarsShared {
  double values[kPartialSums];
  double sum;
};

// The sum of all squares, into shared.sum; 0 where there are none.
template <typename ThreadGroup>
RADAM_HD void sum_partials(const ScalarsArguments& arguments, ScalarsShared& shared, const ThreadGroup& threads) {
  threads([&](int thread) {
    if (thread == 0) shared.sum = 0.0;
  });
  for (int64_t line = 0; line < arguments.partial_sum_rows; ++line) {
    const double* from = arguments.partial_sums + line * kPartialSums;
    threads([&](int thread) {
      for (int i = thread; i < kPartialSums; i += ThreadGroup::kThreads) shared.values[i] = from[i];
    });
    tree_reduce(shared.values, kPartialSums, threads);
    threads([&](int thread) {
      if (thread == 0) shared.sum += shared.values[0];
    });
  }
}

// What clipping and scaling make of the norm, which is written out by one thread.
RADAM_HD CommonScalars common_scalars(const ScalarsArguments& arguments, double sum, bool writes) {
  CommonScalars common{1.0, 1.0, arguments.found_inf != nullptr && *arguments.found_inf != 0.0f};
  if (arguments.grad_scale != nullptr) common.grad_scale = double(*arguments.grad_scale);
  double norm = 0.0;
  if (arguments.partial_sums != nullptr) {
    norm = sqrt(sum) / common.grad_scale;
    // torch.nn.utils.clip_grad_norm_ writes a quotient, which torch computes as a reciprocal and a product.
    const double clip_coefficient = 1.0 / (norm + 1e-6) * arguments.max_grad_norm;
    common.clip_coefficient = clip_coefficient > 1.0 ? 1.0 : clip_coefficient;
  }
  if (writes) *arguments.norm = norm;
  return common;
}

template <typename ThreadGroup>
RADAM_HD void compute_all_scalars(const ScalarsArguments& arguments, ScalarsShared& shared,
                                  const ThreadGroup& threads) {
  sum_partials(arguments, shared, threads);
  threads([&](int thread) {
    const CommonScalars common = common_scalars(arguments, shared.sum, thread == 0);
    for (int64_t i = thread; i < arguments.scalar_count; i += ThreadGroup::kThreads) {
      const int64_t group = arguments.pairs[2 * i];
      const double t = steps_taken(arguments, arguments.pairs[2 * i + 1]) + 1.0;
      compute_scalars(arguments.scalars + i * kScalarColumns, arguments.group_scalars[group], t,
                      learning_rate(arguments, group), common);
    }
  });
  threads([&](int thread) {
    const bool skip = arguments.found_inf != nullptr && *arguments.found_inf != 0.0f;
    for (int64_t i = thread; i < arguments.segment_count; i += ThreadGroup::kThreads) {
      arguments.taken[i] = steps_taken(arguments, i) + (skip ? 0.0 : double(arguments.counted[i]));
      arguments.steps[i] = float(arguments.taken[i]);
    }
  });
}

}  // namespace radam_fused
