// Loads and stores of up to 16 bytes, the widest of a thread, and table lookups.
#pragma once

#include <cassert>
#include <type_traits>

#include "numerics/dtypes.h"

namespace radam_fused {

constexpr int kAccess = 16;  // bytes

RADAM_HD bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % kAccess == 0; }

#if defined(__CUDACC__)
using Uint4 = uint4;
#else
struct alignas(16) Uint4 {
  uint32_t x, y, z, w;
};
#endif

// A step reads and writes every value once, and a model does not fit the cache: both accesses ask for early eviction,
// which leaves the cache to the tables and to other data (PTX cache operators .cs).
template <typename Word>
RADAM_HD Word load_streaming(const Word* from) {
#if defined(__CUDA_ARCH__)
  return __ldcs(from);
#else
  assert(reinterpret_cast<uintptr_t>(from) % sizeof(Word) == 0);  // as a GPU requires
  Word word;
  memcpy(&word, from, sizeof(word));
  return word;
#endif
}

// For data that no thread writes during the launch and another launch will read again: it may stay in the cache.
template <typename Word>
RADAM_HD Word load_cached(const Word* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(from);
#else
  return load_streaming(from);
#endif
}

template <typename Word>
RADAM_HD void store_streaming(Word* to, Word word) {
#if defined(__CUDA_ARCH__)
  __stcs(to, word);
#else
  assert(reinterpret_cast<uintptr_t>(to) % sizeof(Word) == 0);
  memcpy(to, &word, sizeof(word));
#endif
}

// A value in a table, which no thread writes during the launch: through the read-only cache.
template <typename Value>
RADAM_HD Value look_up(const void* from) {
  Value value;
#if defined(__CUDA_ARCH__)
  using Word = std::conditional_t<alignof(Value) == 16, Uint4,
                                  std::conditional_t<alignof(Value) == 8, unsigned long long, unsigned>>;
  RADAM_UNROLL
  for (int i = 0; i < int(sizeof(Value) / sizeof(Word)); ++i) {
    const Word word = __ldg(static_cast<const Word*>(from) + i);
    memcpy(reinterpret_cast<char*>(&value) + i * sizeof(Word), &word, sizeof(Word));
  }
#else
  memcpy(&value, from, sizeof(value));
#endif
  return value;
}

// A value among the kernel's arguments, which the device has in constant memory.
template <typename Value>
RADAM_HD Value read_argument(const unsigned char* from) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const Value*>(from);
#else
  return look_up<Value>(from);
#endif
}

// The type that moves this many bytes; 16-byte words for more than 16.
template <int Bytes>
using WordFor = std::conditional_t<
    Bytes >= 16, Uint4,
    std::conditional_t<Bytes == 8, unsigned long long, std::conditional_t<Bytes == 4, unsigned, unsigned short>>>;

// N consecutive elements of the stored type S, in registers.
template <typename S, int N>
struct AlignedVector {
  using Word = WordFor<N * sizeof(S)>;
  static constexpr int kWords = N * sizeof(S) / sizeof(Word);

  S value[N];

  static RADAM_HD AlignedVector load(const S* from) {
    return collect(from, [](const Word* at) { return load_streaming(at); });
  }

  static RADAM_HD AlignedVector load_cached(const S* from) {
    return collect(from, [](const Word* at) { return radam_fused::load_cached(at); });
  }

  RADAM_HD void store(S* to) const {
    RADAM_UNROLL
    for (int i = 0; i < kWords; ++i) {
      Word word;
      memcpy(&word, reinterpret_cast<const char*>(value) + i * sizeof(Word), sizeof(Word));
      store_streaming(reinterpret_cast<Word*>(to) + i, word);
    }
  }

 private:
  template <typename Read>
  static RADAM_HD AlignedVector collect(const S* from, const Read& read) {
    AlignedVector vector;
    RADAM_UNROLL
    for (int i = 0; i < kWords; ++i) {
      const Word word = read(reinterpret_cast<const Word*>(from) + i);
      memcpy(reinterpret_cast<char*>(vector.value) + i * sizeof(Word), &word, sizeof(Word));
    }
    return vector;
  }
};

}  // namespace radam_fused
