// One loop, compiled several times: the function's target attribute lets the compiler vectorise the same inlined body
// for another instruction set, and IEEE operations without contraction give the same bits on all of them.
#include "kernels.h"

#include <cstdlib>
#include <cstring>

#include "../update.h"

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define RADAM_X86 1
#else
#define RADAM_X86 0
#endif

namespace radam_fused {
namespace {

// Four streams at once are more than the hardware prefetchers keep up with when they must not cross a page: asking for
// memory this far ahead brings a step from 90 to 99 % of a loop that only adds.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kBlock = 64;  // elements between requests: whole lines of every dtype

// Asks for the block that lies kPrefetchBytes after the one that begins here; past the end of an array that is
// harmless.
template <typename Stored>
RADAM_HD void prefetch(const Stored* block) {
  const char* ahead = reinterpret_cast<const char*>(block) + kPrefetchBytes;
  for (int64_t at = 0; at < kBlock * int64_t(sizeof(Stored)); at += kLineBytes) __builtin_prefetch(ahead + at);
}

template <typename P, typename G, typename T>
RADAM_HD void update_at(P* p, const G* g, T* m, T* v, int64_t i, const Row<T>& row) {
  T value = widen(p[i]);
  update_element<T>(value, widen(g[i]), m[i], v[i], row);
  p[i] = Narrow<P>::from(value);
}

template <typename P, typename G>
RADAM_HD void update_span(void* param, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                          const double* columns) {
  using T = Computed<P>;
  P* __restrict p = static_cast<P*>(param);
  const G* __restrict g = static_cast<const G*>(grad);
  T* __restrict m = static_cast<T*>(exp_avg);
  T* __restrict v = static_cast<T*>(exp_avg_sq);
  const Row<T> row = Row<T>::from(columns);
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    prefetch(p + i);
    prefetch(g + i);
    prefetch(m + i);
    prefetch(v + i);
    for (int64_t k = i; k < i + kBlock; ++k) update_at(p, g, m, v, k, row);
  }
  for (; i < n; ++i) update_at(p, g, m, v, i, row);
}

template <typename P, typename G>
void span_baseline(void* p, const void* g, void* m, void* v, int64_t n, const double* row) {
  update_span<P, G>(p, g, m, v, n, row);
}

#if RADAM_X86
template <typename P, typename G>
__attribute__((target("avx2"))) void span_avx2(void* p, const void* g, void* m, void* v, int64_t n, const double* row) {
  update_span<P, G>(p, g, m, v, n, row);
}

template <typename P, typename G>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void span_avx512(void* p, const void* g, void* m, void* v,
                                                                               int64_t n, const double* row) {
  update_span<P, G>(p, g, m, v, n, row);
}
#endif

enum class Isa { kBaseline, kAvx2, kAvx512 };

// RADAM_FUSED_CPU_ISA=baseline|avx2 takes a narrower set than the machine has: for tests that all give the same bits.
Isa detect() {
#if RADAM_X86
  const char* limit = std::getenv("RADAM_FUSED_CPU_ISA");
  if (limit != nullptr && std::strcmp(limit, "baseline") == 0) return Isa::kBaseline;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (limit == nullptr || std::strcmp(limit, "avx2") != 0)) return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa detected = detect();
  return detected;
}

template <typename P, typename G>
SpanKernel pick() {
#if RADAM_X86
  if (isa() == Isa::kAvx512) return span_avx512<P, G>;
  if (isa() == Isa::kAvx2) return span_avx2<P, G>;
#endif
  return span_baseline<P, G>;
}

template <typename P>
SpanKernel pick_for(int grad_dtype) {
  switch (grad_dtype) {
    case kFloat32:
      return pick<P, float>();
    case kFloat16:
      return pick<P, float16>();
    case kBFloat16:
      return pick<P, bfloat16>();
    default:
      return nullptr;
  }
}

}  // namespace

SpanKernel select_kernel(int param_dtype, int grad_dtype) {
  switch (param_dtype) {
    case kFloat32:
      return pick_for<float>(grad_dtype);
    case kFloat16:
      return pick_for<float16>(grad_dtype);
    case kBFloat16:
      return pick_for<bfloat16>(grad_dtype);
    case kFloat64:
      return grad_dtype == kFloat64 ? pick<double, double>() : nullptr;
    default:
      return nullptr;
  }
}

const char* instruction_set() {
  switch (isa()) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace radam_fused
