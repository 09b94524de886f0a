#include "cpu/grad_norm_kernel.h"

#include "cpu/cpu_capability.h"
#include "cpu/prefetch.h"
#include "numerics/dtypes.h"
#include "numerics/grad_norm_order.h"
#include "numerics/thread_group.h"

namespace radam_fused {
namespace {

template <typename G>
RADAM_HD RunType<G>* run_of(GradNormLanes& lanes) {
  return reinterpret_cast<RunType<G>*>(lanes.run);
}

template <typename G>
RADAM_HD void add_squares(GradNormLanes& lanes, const void* from, int64_t n) {
  const G* __restrict g = static_cast<const G*>(from);
  RunType<G>* __restrict run = run_of<G>(lanes);
  for (; n >= kLanes; n -= kLanes, g += kLanes) {
    for (int block = 0; block < kLanes; block += kPrefetchElements) {
      prefetch(g + block);
      for (int i = block; i < block + kPrefetchElements; ++i) run[i] += square(widen(g[i]));
    }
  }
  for (int i = 0; i < n; ++i) run[i] += square(widen(g[i]));
}

template <typename G>
RADAM_HD void add_run(GradNormLanes& lanes, bool first) {
  RunType<G>* __restrict run = run_of<G>(lanes);
  double* __restrict sum = lanes.sum;
  if (first) {
    for (int i = 0; i < kLanes; ++i) sum[i] = double(run[i]);
  } else {
    for (int i = 0; i < kLanes; ++i) sum[i] += double(run[i]);
  }
  for (int i = 0; i < kLanes; ++i) run[i] = 0;
}

// As tree_reduce (numerics/thread_group.h), in a form that compilers vectorise.
RADAM_HD double reduce_lanes(GradNormLanes& lanes) {
  double* __restrict sum = lanes.sum;
  for (int half = kLanes / 2; half >= 8; half /= 2) {
    for (int i = 0; i < half; i += 8) {
      for (int k = i; k < i + 8; ++k) sum[k] += sum[half + k];
    }
  }
  const SingleThread alone;
  tree_reduce(sum, 8, alone);
  return sum[0];
}

// The functions of one instruction set.
#define RADAM_GRAD_NORM(Target, NAME)                                         \
  template <typename G>                                                       \
  Target void add_##NAME(GradNormLanes& lanes, const void* from, int64_t n) { \
    add_squares<G>(lanes, from, n);                                           \
  }                                                                           \
  template <typename G>                                                       \
  Target void finish_##NAME(GradNormLanes& lanes, bool first) {               \
    add_run<G>(lanes, first);                                                 \
  }                                                                           \
  Target double reduce_##NAME(GradNormLanes& lanes) { return reduce_lanes(lanes); }

RADAM_GRAD_NORM(, baseline)
#if RADAM_X86
RADAM_GRAD_NORM(RADAM_AVX2, avx2)
RADAM_GRAD_NORM(RADAM_AVX512, avx512)
#endif
#undef RADAM_GRAD_NORM

template <typename G>
GradNormKernel pick() {
#if RADAM_X86
  if (cpu_capability() == CpuCapability::kAvx512) return {kRun<G>, add_avx512<G>, finish_avx512<G>, reduce_avx512};
  if (cpu_capability() == CpuCapability::kAvx2) return {kRun<G>, add_avx2<G>, finish_avx2<G>, reduce_avx2};
#endif
  return {kRun<G>, add_baseline<G>, finish_baseline<G>, reduce_baseline};
}

}  // namespace

GradNormKernel select_grad_norm_kernel(int dtype) {
  return dispatch_dtype(dtype, GradNormKernel{}, [](auto g) { return pick<decltype(g)>(); });
}

}  // namespace radam_fused
