// Single instructions of a GPU that no C++ expression compiles to, each beside what it computes on the host.
#pragma once

#include <type_traits>

#include "numerics/dtypes.h"

namespace radam_fused {

// Four bytes of two words, chosen by the four low digits of `selector`: 0 to 3 of `a`, 4 to 7 of `b`.
RADAM_HD uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) found |= uint32_t(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return found;
#endif
}

// Two floats as neighbours in a word, rounded to nearest even. NaNs are not those of Narrow.
template <typename P>
RADAM_HD uint32_t narrow_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t word;
  if constexpr (std::is_same_v<P, bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
#else
  return Narrow<P>::from(low).bits | uint32_t(Narrow<P>::from(high).bits) << 16;
#endif
}

// widen(float16), but for the bits of a NaN.
RADAM_HD float widen_half(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#else
  return widen(float16{bits});
#endif
}

RADAM_HD float widen_stored(float x) { return x; }
RADAM_HD double widen_stored(double x) { return x; }
RADAM_HD float widen_stored(bfloat16 x) { return widen(x); }
RADAM_HD float widen_stored(float16 x) { return widen_half(x.bits); }

// A constant in a register. nvcc knows its value otherwise, and moves it to a register for every use by an instruction
// that has another constant already.
RADAM_HD uint32_t in_register(uint32_t constant) {
#if defined(__CUDA_ARCH__)
  uint32_t zero;
  asm("mov.u32 %0, %%tid.z;" : "=r"(zero));  // blocks have one dimension
  return constant + zero;
#else
  return constant;
#endif
}

// The same index, of which nvcc does not know that it is: what is looked up with it is looked up here.
RADAM_HD int32_t again_from_memory(int32_t index) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(index));
#endif
  return index;
}

}  // namespace radam_fused
