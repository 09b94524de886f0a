// The instruction set that the CPU kernels use, chosen when the first of them runs.
#pragma once

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define RADAM_X86 1
#else
#define RADAM_X86 0
#endif

// For functions that the compiler vectorises for a wider instruction set than the library requires. The same body is
// inlined in each of them; IEEE operations without contraction give the same bits in all.
#define RADAM_AVX2 __attribute__((target("avx2")))
#define RADAM_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
// For functions that are inlined into those.
#define RADAM_AVX512_INLINE RADAM_AVX512 inline __attribute__((always_inline))

namespace radam_fused {

enum class CpuCapability { kBaseline, kAvx2, kAvx512 };

// The widest that this machine has. Tests set RADAM_FUSED_CPU_ISA=baseline|avx2 to compare the bits of all.
CpuCapability cpu_capability();

// Its name: "baseline", "avx2" or "avx512".
const char* capability_name();

}  // namespace radam_fused
