// Philox in AVX-512, eight calls at once. Must match numerics/philox.h bit for bit.
#pragma once

#include "cpu/avx512/vec.h"
#include "numerics/philox.h"
#include "numerics/state_format.h"

#if RADAM_X86
namespace radam_fused::avx512 {

constexpr int kCalls = 8;  // per vector
constexpr int kRounds = 10;
constexpr int kChunk = 4 * kBlockElements;  // elements that are updated together

// The round keys, computed once for all calls.
struct Keys {
  uint64_t first[kRounds], second[kRounds];

  explicit Keys(uint32_t seed) {
    for (uint32_t k = 0; k < kRounds; ++k) {
      first[k] = uint32_t(seed + k * 0x9E3779B9u);
      second[k] = uint32_t(k * 0xBB67AE85u);
    }
  }
};

// Eight calls: a word each in the lower half of a 64-bit lane. The multiplication ignores the upper halves, so a round
// is two multiplications, two moves of a half and two xors, evenly spread over both ports. From the scalar code GCC
// makes four multiplications and a dozen permutations.
struct Calls {
  U c0, c1, c2, c3;

  RADAM_VEC void begin(uint64_t group, uint32_t stream, uint32_t step) {
    c0 = _mm512_add_epi64(_mm512_set1_epi64(int64_t(group)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    c1 = _mm512_srli_epi64(c0, 32);
    c2 = _mm512_set1_epi64(step);
    c3 = _mm512_set1_epi64(stream);
  }

  RADAM_VEC void round(const Keys& keys, int k) {
    constexpr int kXor = 0x96;
    const U a = _mm512_mul_epu32(c0, _mm512_set1_epi64(0xD2511F53));
    const U b = _mm512_mul_epu32(c2, _mm512_set1_epi64(0xCD9E8D57));
    const U high_a = _mm512_srli_epi64(a, 32), high_b = _mm512_shuffle_epi32(b, _MM_PERM_ENUM(0xf5));
    c0 = _mm512_ternarylogic_epi64(high_b, c1, _mm512_set1_epi64(int64_t(keys.first[k])), kXor);
    c1 = b;
    c2 = _mm512_ternarylogic_epi64(high_a, c3, _mm512_set1_epi64(int64_t(keys.second[k])), kXor);
    c3 = a;
  }

  RADAM_VEC void store(uint32_t* words) const {
    constexpr __mmask16 kUpper = 0xaaaa;
    const U front = _mm512_mask_shuffle_epi32(c0, kUpper, c1, _MM_PERM_ENUM(0xa0));
    const U back = _mm512_mask_shuffle_epi32(c2, kUpper, c3, _MM_PERM_ENUM(0xa0));
    const U low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    _mm512_storeu_si512(words, _mm512_permutex2var_epi64(front, low, back));
    _mm512_storeu_si512(words + kLanes, _mm512_permutex2var_epi64(front, high, back));
  }
};

// The random numbers of a chunk. They are computed shortly ahead of their use, interleaved with the update of earlier
// elements: that waits for the divider, which random numbers do not use.
class RandomBits {
 public:
  RADAM_VEC void begin(int64_t rng_offset, int n, uint32_t stream, uint32_t step, const Keys& keys) {
    offset_ = int(rng_offset % kRandsPerCall);  // a chunk may begin within a group
    group_ = uint64_t(rng_offset / kRandsPerCall);
    until_ = offset_ + n;
    stream_ = stream;
    step_ = step;
    keys_ = &keys;
    if (until_ <= kOfVector) {
      fill<1>(0);
    } else {
      fill<kSideBySide>(0);
    }
  }

  // To be called for every i, in order, before `at(i)`.
  RADAM_VEC void ahead(int i) {
    if (i % kAtOnce == 0 && i + kAtOnce < until_) fill<kSideBySide>(i + kAtOnce);
  }

  // The numbers of the 32 elements from the i-th on, two consecutive ones per word.
  RADAM_VEC U at(int i) const { return load_words(words_, offset_ + i); }

 private:
  static constexpr int kOfVector = kCalls * kRandsPerCall;
  // A round has a latency of eight cycles and occupies the ports for three, so four vectors are interleaved.
  static constexpr int kSideBySide = 4;
  static constexpr int kAtOnce = kSideBySide * kOfVector;

  template <int kVectors>
  RADAM_AVX512 __attribute__((noinline)) void fill(int i) {
    Calls calls[kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c)
      calls[c].begin(group_ + uint64_t(i / kRandsPerCall + c * kCalls), stream_, step_);
#pragma GCC unroll 10
    for (int k = 0; k < kRounds; ++k) {
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) calls[c].round(*keys_, k);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) calls[c].store(words_ + (i + c * kOfVector) / 2);
  }

  alignas(64) uint32_t words_[(kChunk + kAtOnce) / 2];
  uint64_t group_;
  const Keys* keys_;
  uint32_t stream_, step_;
  int offset_, until_;
};

}  // namespace radam_fused::avx512
#endif
