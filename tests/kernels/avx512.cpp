// The AVX-512 functions of csrc/cpu/avx512 beside the scalar functions that they must match bit for bit, for
// tests/kernels/test_avx512.py: each function fills `ours` sixteen elements at a time and `theirs` one by one.
#include "cpu/avx512/philox.h"
#include "cpu/avx512/quantization.h"
#include "cpu/avx512/update.h"

namespace radam_fused {
namespace {

using namespace avx512;

enum Way { kNarrowed, kAsParameter, kDrawn };

template <typename S>
RADAM_AVX512 void store(Way way, const float* x, const uint16_t* rand, int64_t n, uint16_t* ours, uint16_t* theirs) {
  for (int64_t i = 0; i < n; i += kElements) {
    const Pair pair = load_pair<float>(x + i, 0);
    const U words = way == kNarrowed      ? narrowed(S{}, pair)
                    : way == kAsParameter ? param_of_master(S{}, pair)
                                          : stochastic(S{}, pair, load_words(rand + i, 0));
    store_words(ours + i, 0, words);
  }
  for (int64_t i = 0; i < n; ++i) {
    theirs[i] = (way == kNarrowed      ? Narrow<S>::from(x[i])
                 : way == kAsParameter ? Parameter<S>::from(x[i])
                                       : Stochastic<S>::from(x[i], rand[i]))
                    .bits;
  }
}

template <typename S>
RADAM_AVX512 void load(const uint16_t* stored, int64_t n, float* ours, float* theirs) {
  for (int64_t i = 0; i < n; i += kElements) store_floats(ours + i, 0, load_pair<S>(stored + i, 0));
  for (int64_t i = 0; i < n; ++i) theirs[i] = widen(S{stored[i]});
}

}  // namespace
}  // namespace radam_fused

using namespace radam_fused;

extern "C" {

RADAM_AVX512 void lanes_store(int64_t bfloat, int64_t way, const float* x, const uint16_t* rand, int64_t n,
                              uint16_t* ours, uint16_t* theirs) {
  (bfloat ? store<bfloat16> : store<float16>)(Way(way), x, rand, n, ours, theirs);
}

RADAM_AVX512 void lanes_load(int64_t bfloat, const uint16_t* stored, int64_t n, float* ours, float* theirs) {
  (bfloat ? load<bfloat16> : load<float16>)(stored, n, ours, theirs);
}

// Of a bfloat16 and 16 bits more: joined, and split again; n pairs of both.
RADAM_AVX512 void lanes_split(const float* x, int64_t n, uint16_t* ours, uint16_t* theirs) {
  for (int64_t i = 0; i < n; i += kElements) {
    split(ours + i, ours + n + i, load_pair<float>(x + i, 0), 0);
  }
  for (int64_t i = 0; i < n; ++i) {
    theirs[i] = Parameter<bfloat16>::from(x[i]).bits;
    theirs[n + i] = uint16_t(low_bits(x[i]));
  }
}
RADAM_AVX512 void lanes_join(const uint16_t* high, const int16_t* low, int64_t n, float* ours, float* theirs) {
  for (int64_t i = 0; i < n; i += kElements) store_floats(ours + i, 0, joined(high + i, low + i, 0));
  for (int64_t i = 0; i < n; ++i) theirs[i] = join({high[i]}, low[i]);
}

// Both moments as float16, n of the first and then n of the second, by the second one's roots.
RADAM_AVX512 void lanes_halves(const float* m, const float* root, const uint16_t* rand, int64_t n, uint16_t* ours,
                               uint16_t* theirs) {
  for (int64_t i = 0; i < n; i += kElements) {
    const U words = load_words(rand + i, 0);
    const U second = stochastic(float16{}, fourth_roots(load_pair<float>(root + i, 0)), words);
    const Pair quotients = half_quotients(load_pair<float>(m + i, 0), widened(float16{}, second));
    store_words(ours + i, 0, stochastic(float16{}, quotients, swapped_bytes(words)));
    store_words(ours + n + i, 0, second);
  }
  for (int64_t i = 0; i < n; ++i) {
    const float16 second = HalfRoot::encode(root[i], rand[i]);
    theirs[i] = HalfFirst::encode(m[i], HalfRoot::decode(second), swap_bytes(rand[i])).bits;
    theirs[n + i] = second.bits;
  }
}

// The numbers of n places from `rng_offset` on, a run of elements.
RADAM_AVX512 void lanes_random_bits(int64_t rng_offset, int64_t n, int64_t stream, int64_t step, int64_t seed,
                                    uint16_t* ours, uint16_t* theirs) {
  const Keys keys{uint32_t(seed)};
  RandomBits rand;
  rand.begin(rng_offset, int(n), uint32_t(stream), uint32_t(step), keys);
  for (int i = 0; i < n; i += kElements) {
    rand.ahead(i);
    store_words(ours + i, 0, rand.at(i));
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t place = rng_offset + i;
    const Philox random = philox(uint64_t(place / kRandsPerCall), uint32_t(step), uint32_t(stream), uint32_t(seed));
    theirs[i] = uint16_t(random.rand16(int(place % kRandsPerCall)));
  }
}

}  // extern "C"
