#include "cpu/cpu_capability.h"

#include <cstdlib>
#include <cstring>

namespace radam_fused {
namespace {

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

}  // namespace

Isa isa() {
  static const Isa detected = detect();
  return detected;
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
