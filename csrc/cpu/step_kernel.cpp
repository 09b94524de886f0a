// One loop, compiled for several instruction sets.
#include "cpu/step_kernel.h"

#include "cpu/cpu_capability.h"
#include "cpu/prefetch.h"
#include "numerics/dtypes.h"
#include "numerics/radam_update.h"

namespace radam_fused {
namespace {

template <typename P, typename G, typename T>
RADAM_HD void update_all(P* __restrict p, const G* __restrict g, T* __restrict m, T* __restrict v, int64_t n,
                         const StepScalars<T>& scalars, const UpdateBranches& branches) {
  int64_t i = 0;
  for (; i + kPrefetchElements <= n; i += kPrefetchElements) {
    prefetch(p + i);
    prefetch(g + i);
    prefetch(m + i);
    prefetch(v + i);
    for (int64_t k = i; k < i + kPrefetchElements; ++k) update_element(p[k], g[k], m[k], v[k], scalars, branches);
  }
  for (; i < n; ++i) update_element(p[i], g[i], m[i], v[i], scalars, branches);
}

// A loop per pair of branches in common use; beta2 < 1/2, which is rare, has a loop with blends.
template <typename P, typename G>
RADAM_HD void update_span(void* param, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                          const void* rounded) {
  using T = ComputeType<P>;
  P* p = static_cast<P*>(param);
  const G* g = static_cast<const G*>(grad);
  T* m = static_cast<T*>(exp_avg);
  T* v = static_cast<T*>(exp_avg_sq);
  const StepScalars<T> scalars = *static_cast<const StepScalars<T>*>(rounded);
  const UpdateBranches branches = UpdateBranches::of(scalars);
  if (!branches.v_by_difference) {
    update_all(p, g, m, v, n, scalars, branches);
  } else if (branches.decays) {
    update_all(p, g, m, v, n, scalars, UpdateBranches{true, true});
  } else {
    update_all(p, g, m, v, n, scalars, UpdateBranches{true, false});
  }
}

template <typename P, typename G>
void update_baseline(void* p, const void* g, void* m, void* v, int64_t n, const void* scalars) {
  update_span<P, G>(p, g, m, v, n, scalars);
}

#if RADAM_X86
template <typename P, typename G>
RADAM_AVX2 void update_avx2(void* p, const void* g, void* m, void* v, int64_t n, const void* scalars) {
  update_span<P, G>(p, g, m, v, n, scalars);
}

template <typename P, typename G>
RADAM_AVX512 void update_avx512(void* p, const void* g, void* m, void* v, int64_t n, const void* scalars) {
  update_span<P, G>(p, g, m, v, n, scalars);
}
#endif

template <typename P, typename G>
StepKernel pick() {
#if RADAM_X86
  if (cpu_capability() == CpuCapability::kAvx512) return update_avx512<P, G>;
  if (cpu_capability() == CpuCapability::kAvx2) return update_avx2<P, G>;
#endif
  return update_baseline<P, G>;
}

}  // namespace

StepKernel select_step_kernel(int param_dtype, int grad_dtype) {
  return dispatch_dtypes(param_dtype, grad_dtype, StepKernel{nullptr},
                         [](auto p, auto g) { return pick<decltype(p), decltype(g)>(); });
}

}  // namespace radam_fused
