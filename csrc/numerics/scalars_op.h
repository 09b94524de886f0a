// The scalars operator, on the device of its tensors (radam_fused/backends/ops.py): first the norm of the gradients,
// then all scalars, from the number of steps taken so far, then the step counts.
#pragma once

#include "numerics/grad_norm_order.h"
#include "numerics/scalars.h"
#include "numerics/thread_group.h"

namespace radam_fused {

// Where the scalars of one (group, step) pair come from: a parameter group, and a segment that has taken as many steps.
struct ScalarSource {
  int64_t group;
  int64_t segment;
};

struct ScalarsKernelArgs {
  const GroupScalars* groups;
  const ScalarSource* sources;  // scalar_count of them
  int64_t scalar_count;
  const float* counted;  // 1 for a segment that takes the step, else 0
  float* steps;          // `taken` rounded, as optimizer.state shows it
  double* taken;         // how many steps each segment has taken
  int64_t segment_count;
  const void* lr;  // per group; null: those in `groups`
  int64_t lr_stride;
  bool lr_is_double;
  const double* partial_sums;  // of the squares of gradients, bucket_count times kPartialSums; null: no clipping
  int64_t bucket_count;
  double max_grad_norm;
  const float* grad_scale;  // or null
  const float* found_inf;   // or null
  double* scalars;          // written: scalar_count times kScalarColumns
  double* norm;             // written: one
};

RADAM_HD double learning_rate(const ScalarsKernelArgs& arguments, int64_t group) {
  const int64_t at = group * arguments.lr_stride;
  if (arguments.lr == nullptr) return arguments.groups[group].lr;
  return arguments.lr_is_double ? static_cast<const double*>(arguments.lr)[at]
                                : double(static_cast<const float*>(arguments.lr)[at]);
}

// Steps taken so far: the exact count, unless user code has written another one to optimizer.state.
RADAM_HD double steps_taken(const ScalarsKernelArgs& arguments, int64_t segment) {
  const double taken = arguments.taken[segment];
  const float shown = arguments.steps[segment];
  return shown == float(taken) ? taken : double(shown);
}

// Memory that all threads share.
struct ScalarsShared {
  double values[kPartialSums];
  double sum;
};

// The sum of all partial sums, into shared.sum; 0 if there are none.
template <typename ThreadGroup>
RADAM_HD void sum_partials(const ScalarsKernelArgs& arguments, ScalarsShared& shared, const ThreadGroup& threads) {
  threads([&](int thread) {
    if (thread == 0) shared.sum = 0.0;
  });
  for (int64_t bucket = 0; bucket < arguments.bucket_count; ++bucket) {
    const double* from = arguments.partial_sums + bucket * kPartialSums;
    threads([&](int thread) {
      for (int i = thread; i < kPartialSums; i += ThreadGroup::kThreads) shared.values[i] = from[i];
    });
    tree_reduce(shared.values, kPartialSums, threads);
    threads([&](int thread) {
      if (thread == 0) shared.sum += shared.values[0];
    });
  }
}

// The effects of clipping and gradient scaling. One thread, the one that `writes`, also stores the norm.
RADAM_HD CommonScalars common_scalars(const ScalarsKernelArgs& arguments, double sum, bool writes) {
  CommonScalars common{1.0, 1.0, arguments.found_inf != nullptr && *arguments.found_inf != 0.0f};
  if (arguments.grad_scale != nullptr) common.grad_scale = double(*arguments.grad_scale);
  double norm = 0.0;
  if (arguments.partial_sums != nullptr) {
    norm = sqrt(sum) / common.grad_scale;
    // As torch.nn.utils.clip_grad_norm_: torch computes its quotient as a reciprocal and a product.
    const double clip_coefficient = 1.0 / (norm + 1e-6) * arguments.max_grad_norm;
    common.clip_coefficient = clip_coefficient > 1.0 ? 1.0 : clip_coefficient;
  }
  if (writes) *arguments.norm = norm;
  return common;
}

template <typename ThreadGroup>
RADAM_HD void compute_all_scalars(const ScalarsKernelArgs& arguments, ScalarsShared& shared,
                                  const ThreadGroup& threads) {
  sum_partials(arguments, shared, threads);
  threads([&](int thread) {
    const CommonScalars common = common_scalars(arguments, shared.sum, thread == 0);
    for (int64_t i = thread; i < arguments.scalar_count; i += ThreadGroup::kThreads) {
      const auto [group, segment] = arguments.sources[i];
      const double t = steps_taken(arguments, segment) + 1.0;
      compute_scalars(arguments.scalars + i * kScalarColumns, arguments.groups[group], t,
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
