#include "cpu/grad_norm_kernel.h"

#include "cpu/cpu_capability.h"
#include "cpu/prefetch.h"
#include "numerics/dtypes.h"
#include "numerics/grad_norm_order.h"
#include "numerics/thread_group.h"

namespace radam_fused {
namespace {

template <typename G>
RADAM_HD void add_squares(double* __restrict lanes, const void* from, int64_t n) {
  const G* __restrict g = static_cast<const G*>(from);
  for (; n >= kLanes; n -= kLanes, g += kLanes) {
    for (int block = 0; block < kLanes; block += kPrefetchElements) {
      prefetch(g + block);
      for (int i = block; i < block + kPrefetchElements; ++i) lanes[i] += square(g[i]);
    }
  }
  for (int i = 0; i < n; ++i) lanes[i] += square(g[i]);
}

// As tree_reduce (numerics/thread_group.h), in a form that compilers vectorise.
RADAM_HD double reduce_lanes(double* __restrict lanes) {
  for (int half = kLanes / 2; half >= 8; half /= 2) {
    for (int i = 0; i < half; i += 8) {
      for (int k = i; k < i + 8; ++k) lanes[k] += lanes[half + k];
    }
  }
  const SingleThread alone;
  tree_reduce(lanes, 8, alone);
  return lanes[0];
}

template <typename G>
void add_baseline(double* lanes, const void* from, int64_t n) {
  add_squares<G>(lanes, from, n);
}
double reduce_baseline(double* lanes) { return reduce_lanes(lanes); }

#if RADAM_X86
template <typename G>
RADAM_AVX2 void add_avx2(double* lanes, const void* from, int64_t n) {
  add_squares<G>(lanes, from, n);
}
RADAM_AVX2 double reduce_avx2(double* lanes) { return reduce_lanes(lanes); }

template <typename G>
RADAM_AVX512 void add_avx512(double* lanes, const void* from, int64_t n) {
  add_squares<G>(lanes, from, n);
}
RADAM_AVX512 double reduce_avx512(double* lanes) { return reduce_lanes(lanes); }
#endif

template <typename G>
GradNormKernel pick() {
#if RADAM_X86
  if (cpu_capability() == CpuCapability::kAvx512) return {add_avx512<G>, reduce_avx512};
  if (cpu_capability() == CpuCapability::kAvx2) return {add_avx2<G>, reduce_avx2};
#endif
  return {add_baseline<G>, reduce_baseline};
}

}  // namespace

GradNormKernel select_grad_norm_kernel(int dtype) {
  return dispatch_dtype(dtype, GradNormKernel{}, [](auto g) { return pick<decltype(g)>(); });
}

}  // namespace radam_fused
