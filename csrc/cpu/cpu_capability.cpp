#include "cpu/cpu_capability.h"

#include <cstdlib>
#include <cstring>

namespace radam_fused {
namespace {

CpuCapability detect() {
#if RADAM_X86
  const char* limit = std::getenv("RADAM_FUSED_CPU_ISA");
  if (limit != nullptr && std::strcmp(limit, "baseline") == 0) return CpuCapability::kBaseline;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (limit == nullptr || std::strcmp(limit, "avx2") != 0)) return CpuCapability::kAvx512;
  if (__builtin_cpu_supports("avx2")) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kBaseline;
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability detected = detect();
  return detected;
}

const char* capability_name() {
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return "avx512";
    case CpuCapability::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace radam_fused
