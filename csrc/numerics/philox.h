// Random numbers for stochastic rounding: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC11). They depend only on the seed, the step and the offset of an element among all parameters, so a run repeats bit
// for bit, whatever the launch.
#pragma once

#include "numerics/dtypes.h"

namespace radam_fused {

constexpr int kRandsPerCall = 8;  // 16-bit numbers per call, for as many consecutive elements

// Independent streams: for rounding parameters, and for rounding moments.
constexpr uint32_t kParamStream = 0, kMomentStream = 1;

struct Philox {
  uint32_t word[4];

  // The number of the i-th of kRandsPerCall elements.
  RADAM_HD uint32_t rand16(int i) const { return (word[i / 2] >> (16 * (i % 2))) & 0xffffu; }
};

// Both halves of a product. nvcc makes two multiplications of a 64-bit one by a constant, and one of this.
struct WideProduct {
  uint32_t high, low;

  RADAM_HD WideProduct(uint32_t x, uint32_t factor) {
#if defined(__CUDA_ARCH__)
    asm("{.reg .b64 both; mul.wide.u32 both, %2, %3; mov.b64 {%0, %1}, both;}"
        : "=r"(low), "=r"(high)
        : "r"(x), "r"(factor));
#else
    const uint64_t both = uint64_t(x) * factor;
    high = uint32_t(both >> 32);
    low = uint32_t(both);
#endif
  }
};

// For the elements whose offsets begin at 8 * group.
RADAM_HD Philox philox(uint64_t group, uint32_t step, uint32_t stream, uint32_t seed) {
  uint32_t c0 = uint32_t(group), c1 = uint32_t(group >> 32), c2 = step, c3 = stream;
  uint32_t k0 = seed, k1 = 0;
  RADAM_UNROLL
  for (int round = 0; round < 10; ++round) {
    const WideProduct a(c0, 0xD2511F53u), b(c2, 0xCD9E8D57u);
    c0 = b.high ^ c1 ^ k0;
    c1 = b.low;
    c2 = a.high ^ c3 ^ k1;
    c3 = a.low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// For the elements from any offset on: between two groups, the end of one and the beginning of the next.
RADAM_HD Philox philox_from(uint64_t offset, uint32_t step, uint32_t stream, uint32_t seed) {
  const uint64_t group = offset / kRandsPerCall;
  const Philox first = philox(group, step, stream, seed);
  const uint32_t by = uint32_t(offset % kRandsPerCall);
  if (by == 0) return first;
  const Philox second = philox(group + 1, step, stream, seed);
  uint32_t words[8];
  RADAM_UNROLL
  for (int i = 0; i < 4; ++i) {
    words[i] = first.word[i];
    words[4 + i] = second.word[i];
  }
  RADAM_UNROLL
  for (int i = 0; i < 6; ++i) words[i] = by & 4 ? words[i + 2] : words[i];
  RADAM_UNROLL
  for (int i = 0; i < 5; ++i) words[i] = by & 2 ? words[i + 1] : words[i];
  Philox result;
  RADAM_UNROLL
  for (int i = 0; i < 4; ++i) result.word[i] = by & 1 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
  return result;
}

// A second number from each one: with its bytes swapped, so that the upper bits of either are the lower ones of the
// other.
RADAM_HD uint32_t swap_bytes(uint32_t rand16) { return ((rand16 << 8) | (rand16 >> 8)) & 0xffffu; }

}  // namespace radam_fused
