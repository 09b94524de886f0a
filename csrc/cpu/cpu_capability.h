// The instruction set that the CPU's loops run in, chosen when the first of them does.
#pragma once

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define RADAM_X86 1
#else
#define RADAM_X86 0
#endif

// For functions that the compiler is to vectorise for a wider set than the binary runs on: it inlines the same body in
// each, and IEEE operations without contraction give the same bits on all of them.
#define RADAM_AVX2 __attribute__((target("avx2")))
#define RADAM_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
// For a part of such a function.
#define RADAM_AVX512_INLINE RADAM_AVX512 inline __attribute__((always_inline))

namespace radam_fused {

enum class CpuCapability { kBaseline, kAvx2, kAvx512 };

// The widest that this machine has. RADAM_FUSED_CPU_ISA=baseline|avx2 takes a narrower one: for tests that all give the
// same bits.
CpuCapability cpu_capability();

// Its name: "baseline", "avx2" or "avx512".
const char* capability_name();

}  // namespace radam_fused
