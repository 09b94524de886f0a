// The bandwidth roofline: reads and writes the same four arrays as a RAdam step in the same way (28 bytes per element
// in fp32), with only one addition per array. No step that moves these bytes through these cores can be faster.
//
// The plain loop is the fastest variant found. Compared with it, interleaved, on the machine of results/cpu with a cold
// cache: non-temporal stores (28 % slower at 16M elements, up to 5 times when the arrays fit into the cache: each line
// has just been read, so the store saves no read for ownership); software prefetch 4 to 64 lines ahead (-1 to +2 %);
// one array at a time in tiles of 4 and 16 KB (5 to 7 % slower); tiles of 64 and 256 KB assigned dynamically, loads
// before stores, unrolling, 256-bit vectors (all within 1 %).
#include <algorithm>
#include <cstdint>

#include <omp.h>

#if defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_ISA
#endif

namespace {

// Elements per cache line; threads split the elements at its multiples.
constexpr int64_t kLine = 16;

FOR_EVERY_ISA
void add_span(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    p[i] += g[i];
    m[i] += g[i];
    v[i] += g[i];
  }
}

}  // namespace

// p += g, m += g and v += g over `count` quadruples of arrays, array i of numel[i] elements. One parallel region for
// all of them; each thread takes its share of the elements, as in a fused step.
extern "C" void radam_bench_roofline(float* const* p, const float* const* g, float* const* m, float* const* v,
                                     const int64_t* numel, int64_t count, int threads) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += numel[i];
  const int64_t lines = (total + kLine - 1) / kLine;

#pragma omp parallel num_threads(threads)
  {
    // The runtime may give fewer threads than it was asked for.
    const int64_t team = omp_get_num_threads();
    const int64_t me = omp_get_thread_num();
    const int64_t begin = std::min(total, lines * me / team * kLine);
    const int64_t end = std::min(total, lines * (me + 1) / team * kLine);
    int64_t first = 0;  // of array i, counted over all of them
    for (int64_t i = 0; i < count && first < end; first += numel[i], ++i) {
      const int64_t from = std::max(begin - first, int64_t(0));
      const int64_t until = std::min(end - first, numel[i]);
      if (from < until) add_span(p[i] + from, g[i] + from, m[i] + from, v[i] + from, until - from);
    }
  }
}
