// One loop, compiled for several instruction sets.
#include "cpu/step_kernel.h"

#include "cpu/cpu_capability.h"
#include "cpu/prefetch.h"
#include "numerics/dtypes.h"
#include "numerics/radam_update.h"

namespace radam_fused {
namespace {

// A loop for each pair of branches, which are constants in it.
template <typename P, typename G, bool kByDifference, bool kDecays>
RADAM_HD void update_span(void* param, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                          const void* rounded) {
  using T = ComputeType<P>;
  constexpr UpdateBranches branches{kByDifference, kDecays};
  P* __restrict p = static_cast<P*>(param);
  const G* __restrict g = static_cast<const G*>(grad);
  T* __restrict m = static_cast<T*>(exp_avg);
  T* __restrict v = static_cast<T*>(exp_avg_sq);
  const StepScalars<T> scalars = *static_cast<const StepScalars<T>*>(rounded);
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

template <typename P, typename G, bool kByDifference, bool kDecays>
void update_baseline(void* p, const void* g, void* m, void* v, int64_t n, const void* scalars) {
  update_span<P, G, kByDifference, kDecays>(p, g, m, v, n, scalars);
}

#if RADAM_X86
template <typename P, typename G, bool kByDifference, bool kDecays>
RADAM_AVX2 void update_avx2(void* p, const void* g, void* m, void* v, int64_t n, const void* scalars) {
  update_span<P, G, kByDifference, kDecays>(p, g, m, v, n, scalars);
}

template <typename P, typename G, bool kByDifference, bool kDecays>
RADAM_AVX512 void update_avx512(void* p, const void* g, void* m, void* v, int64_t n, const void* scalars) {
  update_span<P, G, kByDifference, kDecays>(p, g, m, v, n, scalars);
}
#endif

template <typename P, typename G, bool kByDifference, bool kDecays>
StepKernel for_machine() {
#if RADAM_X86
  if (cpu_capability() == CpuCapability::kAvx512) return update_avx512<P, G, kByDifference, kDecays>;
  if (cpu_capability() == CpuCapability::kAvx2) return update_avx2<P, G, kByDifference, kDecays>;
#endif
  return update_baseline<P, G, kByDifference, kDecays>;
}

template <typename P, typename G>
StepKernel for_branches(const UpdateBranches& branches) {
  if (branches.v_by_difference)
    return branches.decays ? for_machine<P, G, true, true>() : for_machine<P, G, true, false>();
  return branches.decays ? for_machine<P, G, false, true>() : for_machine<P, G, false, false>();
}

}  // namespace

StepKernel select_step_kernel(int param_dtype, int grad_dtype, const UpdateBranches& branches) {
  return dispatch_dtypes(param_dtype, grad_dtype, StepKernel{nullptr},
                         [&](auto p, auto g) { return for_branches<decltype(p), decltype(g)>(branches); });
}

}  // namespace radam_fused
