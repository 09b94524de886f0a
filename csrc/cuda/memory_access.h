// Loads and stores of up to 16 bytes, the widest of a thread: of words, of consecutive elements in registers, and of
// values in tables.
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

constexpr int kVec = 8;  // elements per thread

// Eight consecutive elements of an array whose type is known only at run time, as they are stored, in registers. They
// have `item` bytes each, which is 4, 2 or 1; the first item * kVec / 4 words are used.
struct Packed {
  uint32_t word[kVec] = {};

  // All eight, contiguous and aligned: two accesses of 16 bytes, one of 16, or one of 8.
  static RADAM_HD Packed load(const char* from, int item) {
    Packed packed;
    if (item == 1) {
      packed.fill<2>(from, 0);
    } else {
      packed.fill<4>(from, 0);
      if (item == 4) packed.fill<4>(from, 4);
    }
    return packed;
  }

  RADAM_HD void store(char* to, int item) const {
    if (item == 1) {
      flush<2>(to, 0);
    } else {
      flush<4>(to, 0);
      if (item == 4) flush<4>(to, 4);
    }
  }

  // One at a time, where elements are not contiguous or fewer than eight: push the last one first, pop the first one
  // first. All others move by one, since registers cannot be indexed.
  RADAM_HD void push(uint32_t bits, int item) {
    RADAM_UNROLL
    for (int w = kVec - 1; w >= 0; --w) {
      const uint64_t pair = uint64_t(word[w]) << 32 | (w > 0 ? word[w - 1] : 0);
      word[w] = uint32_t(pair << (8 * item) >> 32);
    }
    word[0] |= bits;
  }

  RADAM_HD uint32_t pop(int item) {
    const uint32_t bits = word[0];  // the bits above belong to the next elements
    RADAM_UNROLL
    for (int w = 0; w < kVec; ++w) {
      const uint64_t pair = uint64_t(w + 1 < kVec ? word[w + 1] : 0) << 32 | word[w];
      word[w] = uint32_t(pair >> (8 * item));
    }
    return bits;
  }

  // The i-th element as an S, for an i known at compile time.
  template <typename S>
  RADAM_HD S value(int i) const {
    constexpr int kItem = sizeof(S), kBits = 8 * kItem;
    const uint32_t bits = word[i * kItem / 4] >> (i * kItem % 4 * 8);
    return from_bits<S>(bits & uint32_t((uint64_t(1) << kBits) - 1));
  }

  // Sets the i-th element. The elements of a word must be set in order.
  template <typename S>
  RADAM_HD void set(int i, S value) {
    constexpr int kItem = sizeof(S);
    const uint32_t bits = to_bits(value) << (i * kItem % 4 * 8);
    uint32_t& into = word[i * kItem / 4];
    into = i * kItem % 4 == 0 ? bits : into | bits;
  }

 private:
  template <int Words>
  RADAM_HD void fill(const char* from, int first) {
    const auto vector = AlignedVector<uint32_t, Words>::load(reinterpret_cast<const uint32_t*>(from) + first);
    RADAM_UNROLL
    for (int w = 0; w < Words; ++w) word[first + w] = vector.value[w];
  }

  template <int Words>
  RADAM_HD void flush(char* to, int first) const {
    AlignedVector<uint32_t, Words> vector;
    RADAM_UNROLL
    for (int w = 0; w < Words; ++w) vector.value[w] = word[first + w];
    vector.store(reinterpret_cast<uint32_t*>(to) + first);
  }

  template <typename S>
  static RADAM_HD S from_bits(uint32_t bits) {
    if constexpr (std::is_same_v<S, float>) {
      return float_from_bits(bits);
    } else if constexpr (std::is_integral_v<S>) {
      return S(bits);
    } else {
      return {decltype(S::bits)(bits)};
    }
  }

  static RADAM_HD uint32_t to_bits(float x) { return bits_from_float(x); }
  template <typename S>
  static RADAM_HD uint32_t to_bits(S x) {
    if constexpr (std::is_integral_v<S>) {
      return std::make_unsigned_t<S>(x);
    } else {
      return x.bits;
    }
  }
};

// One element, as bits.
RADAM_HD uint32_t load_element(const char* from, int item) {
  if (item == 4) return load_streaming(reinterpret_cast<const uint32_t*>(from));
  if (item == 2) return load_streaming(reinterpret_cast<const uint16_t*>(from));
  return load_streaming(reinterpret_cast<const uint8_t*>(from));
}

RADAM_HD void store_element(char* to, uint32_t bits, int item) {
  if (item == 4) return store_streaming(reinterpret_cast<uint32_t*>(to), bits);
  if (item == 2) return store_streaming(reinterpret_cast<uint16_t*>(to), uint16_t(bits));
  store_streaming(reinterpret_cast<uint8_t*>(to), uint8_t(bits));
}

template <typename S>
RADAM_HD void widen_all(float* to, const Packed& from) {
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) to[i] = widen(from.value<S>(i));
}

RADAM_HD void widen_all(float* to, const Packed& from, int dtype) {
  switch (dtype) {
    case kFloat32:
      return widen_all<float>(to, from);
    case kFloat16:
      return widen_all<float16>(to, from);
    default:
      return widen_all<bfloat16>(to, from);
  }
}

}  // namespace radam_fused
