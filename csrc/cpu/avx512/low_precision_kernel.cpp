// The update of low-precision state in AVX-512, 32 elements at a time in registers. The format is tested for every 32:
// a branch that always goes the same way costs less than more passes over arrays, and a loop per format would be a
// hundred loops.
//
// Elements are taken in chunks of a few blocks. Random numbers are computed ahead and 8-bit codes wait for the largest
// element of their block, so a chunk has several loops; at the end of each the processor drains its pipeline, which
// must be rare.
#include <algorithm>

#include "cpu/avx512/philox.h"
#include "cpu/avx512/quantization.h"
#include "cpu/avx512/update.h"
#include "cpu/low_precision_kernel.h"
#include "cpu/prefetch.h"

#if RADAM_X86
namespace radam_fused {
namespace avx512 {
namespace {

// The elements of a chunk.
struct Chunk {
  char* param;
  const char* grad;
  char* exp_avg;
  char* exp_avg_sq;
  char* master;
  float* scales;  // of 8-bit moments
  float* sq_scales;
  int64_t rng_offset;
  int n;  // a multiple of kElements; of 8-bit moments, if more than a block, whole blocks
};

struct Task {
  StateFormat format;
  int grad_dtype;
  StepScalars<float> scalars;
  Keys keys;
  int64_t param_item, grad_item, moment_item, master_item;
};

// The random numbers for parameters and for moments, if the format rounds them stochastically.
struct Random {
  bool for_parameter, for_moments;
  RandomBits parameter, moments;

  RADAM_VEC void begin(const Chunk& at, const Task& task) {
    for_parameter = task.format.stochastic;
    for_moments = task.format.moments != MomentFormat::kFloat32;
    if (for_parameter) parameter.begin(at.rng_offset, at.n, kParamStream, task.scalars.step, task.keys);
    if (for_moments) moments.begin(at.rng_offset, at.n, kMomentStream, task.scalars.step, task.keys);
  }
  RADAM_VEC void ahead(int i) {
    if (for_parameter) parameter.ahead(i);
    if (for_moments) moments.ahead(i);
  }
};

// Prefetches an array kPrefetchBytes after its i-th element. 32 elements are at most two cache lines, and half a line
// of 8-bit codes, of which the whole was prefetched with its first half.
RADAM_VEC void prefetch_at(const char* array, int64_t item, int i) {
  if (item == 1 && i % kLineBytes != 0) return;
  const char* ahead = array + i * item + kPrefetchBytes;
  __builtin_prefetch(ahead);
  if (item == sizeof(float)) __builtin_prefetch(ahead + kLineBytes);
}

RADAM_VEC void prefetch_all(const Chunk& at, const Task& task, int i) {
  prefetch_at(at.param, task.param_item, i);
  prefetch_at(at.grad, task.grad_item, i);
  prefetch_at(at.exp_avg, task.moment_item, i);
  prefetch_at(at.exp_avg_sq, task.moment_item, i);
  if (task.master_item != 0) prefetch_at(at.master, task.master_item, i);
}

template <typename S>
RADAM_VEC void update_uncoded(const Chunk& at, const Task& task, Random& random) {
  const bool compensated = task.format.master == MasterFormat::kKahan;
  for (int i = 0; i < at.n; i += kElements) {
    prefetch_all(at, task, i);
    random.ahead(i);
    Pair x = read_parameter(at.param, at.master, task.format, i);
    const Pair g = load_pair(at.grad, task.grad_dtype, i);
    Pair m = load_pair<S>(at.exp_avg, i), v = load_pair<S>(at.exp_avg_sq, i), root;
    step<false>(x, g, m, v, root, task.scalars, compensated);
    write_or_hold(at.param, at.master, task.format, x, random.parameter, task.scalars, i);
    if constexpr (std::is_same_v<S, float>) {
      store_floats(at.exp_avg, i, m);
      store_floats(at.exp_avg_sq, i, v);
    } else {
      const U words = random.moments.at(i);
      store_words(at.exp_avg, i, stochastic(S{}, m, swapped_bytes(words)));
      store_words(at.exp_avg_sq, i, stochastic(S{}, v, words));
    }
  }
}

// float16 moments, in two loops: in one loop the square roots and divisions of the step and those of the encoding would
// wait for each other.
RADAM_VEC void update_halves(const Chunk& at, const Task& task, Random& random) {
  const bool compensated = task.format.master == MasterFormat::kKahan;
  Pair firsts[kChunk / kElements], roots[kChunk / kElements];
  for (int i = 0; i < at.n; i += kElements) {
    prefetch_all(at, task, i);
    random.ahead(i);
    Pair x = read_parameter(at.param, at.master, task.format, i);
    const Pair g = load_pair(at.grad, task.grad_dtype, i);
    const Pair fourth = load_pair<float16>(at.exp_avg_sq, i);
    Pair root = product(fourth, fourth);
    Pair m = product(load_pair<float16>(at.exp_avg, i), root), v = product(root, root);
    step<true>(x, g, m, v, root, task.scalars, compensated);
    write_or_hold(at.param, at.master, task.format, x, random.parameter, task.scalars, i);
    firsts[i / kElements] = m;
    roots[i / kElements] = root;
  }
  for (int i = 0; i < at.n; i += kElements) {
    const U words = random.moments.at(i);
    const U second = stochastic(float16{}, fourth_roots(roots[i / kElements]), words);
    const Pair first = half_quotients(firsts[i / kElements], widened(float16{}, second));
    store_words(at.exp_avg, i, stochastic(float16{}, first, swapped_bytes(words)));
    store_words(at.exp_avg_sq, i, second);
  }
}

// 8-bit moments, in three loops: the step; the codes of the second moment and the first moment's quotients; the codes
// of the quotients. A block's scales are found in between.
RADAM_VEC void update_coded(const Chunk& at, const Task& task, Random& random) {
  constexpr int kVectors = kBlockElements / kElements;
  const bool compensated = task.format.master == MasterFormat::kKahan;
  const int blocks = (at.n + kBlockElements - 1) / kBlockElements;
  Pair firsts[kChunk / kElements], roots[kChunk / kElements];
  U largest[kChunk / kBlockElements];
  for (int b = 0; b < blocks; ++b) {
    const F scale = all(at.scales[b]), sq_scale = all(at.sq_scales[b]);
    U found = _mm512_setzero_si512();
    for (int i = b * kBlockElements; i < std::min(at.n, (b + 1) * kBlockElements); i += kElements) {
      prefetch_all(at, task, i);
      random.ahead(i);
      Pair x = read_parameter(at.param, at.master, task.format, i);
      const Pair g = load_pair(at.grad, task.grad_dtype, i);
      const Pair octaves = octaves_of(at.exp_avg_sq, i);
      Pair root = scaled(octaves, sq_scale);
      Pair m = decoded_firsts(at.exp_avg, i, scale, octaves);
      Pair v = product(root, root);
      step<true>(x, g, m, v, root, task.scalars, compensated);
      write_or_hold(at.param, at.master, task.format, x, random.parameter, task.scalars, i);
      firsts[i / kElements] = m;
      roots[i / kElements] = root;
      found = larger(found, root);
    }
    largest[b] = found;
  }
  BlockScale root_scales[kChunk / kBlockElements];
  for (int b = 0; b < blocks; ++b) root_scales[b] = RootCode::scale(_mm512_reduce_max_epu32(largest[b]));
  for (int b = 0; b < blocks; ++b) {
    U found = _mm512_setzero_si512();
    for (int k = b * kVectors; k * kElements < std::min(at.n, (b + 1) * kBlockElements); ++k) {
      store_roots(at.exp_avg_sq, k * kElements, roots[k], firsts[k], root_scales[b], random.moments.at(k * kElements));
      found = larger(found, firsts[k]);
    }
    largest[b] = found;
  }
  for (int b = 0; b < blocks; ++b) {
    const BlockScale scale = FirstCode::scale(_mm512_reduce_max_epu32(largest[b]), root_scales[b]);
    at.scales[b] = scale.scale;
    at.sq_scales[b] = root_scales[b].scale;
    for (int k = b * kVectors; k * kElements < std::min(at.n, (b + 1) * kBlockElements); ++k) {
      store_firsts(at.exp_avg, k * kElements, firsts[k], scale, swapped_bytes(random.moments.at(k * kElements)));
    }
  }
}

RADAM_AVX512 void update_chunk(const Chunk& at, const Task& task) {
  Random random;
  random.begin(at, task);
  switch (task.format.moments) {
    case MomentFormat::kFloat32:
      return update_uncoded<float>(at, task, random);
    case MomentFormat::kBFloat16:
      return update_uncoded<bfloat16>(at, task, random);
    case MomentFormat::kFloat16:
      return update_halves(at, task, random);
    case MomentFormat::kInt8:
      return update_coded(at, task, random);
  }
}

// A copy of a short array, padded with zeros to whole vectors.
struct alignas(64) PaddedCopy {
  char bytes[kBlockElements * sizeof(float)];

  RADAM_VEC PaddedCopy(const char* from, int64_t item, int n, int whole) {
    std::memset(bytes, 0, whole * item);
    if (item != 0) std::memcpy(bytes, from, n * item);
  }
  RADAM_VEC void copy_back(char* to, int64_t item, int n) const {
    if (item != 0) std::memcpy(to, bytes, n * item);
  }
};

// A chunk that does not fill whole vectors.
RADAM_AVX512 void update_tail(const Chunk& at, const Task& task) {
  const int n = at.n, whole = (n + kElements - 1) / kElements * kElements;
  PaddedCopy param(at.param, task.param_item, n, whole), grad(at.grad, task.grad_item, n, whole);
  PaddedCopy exp_avg(at.exp_avg, task.moment_item, n, whole), exp_avg_sq(at.exp_avg_sq, task.moment_item, n, whole);
  PaddedCopy master(at.master, task.master_item, n, whole);
  update_chunk({param.bytes, grad.bytes, exp_avg.bytes, exp_avg_sq.bytes, master.bytes, at.scales, at.sq_scales,
                at.rng_offset, whole},
               task);
  param.copy_back(at.param, task.param_item, n);
  exp_avg.copy_back(at.exp_avg, task.moment_item, n);
  exp_avg_sq.copy_back(at.exp_avg_sq, task.moment_item, n);
  master.copy_back(at.master, task.master_item, n);
}

}  // namespace
}  // namespace avx512

void low_precision_avx512(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                          const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n, const double* columns) {
  using namespace avx512;
  const StepScalars<float> scalars = StepScalars<float>::from(columns);
  const Task task{format,
                  grad_dtype,
                  scalars,
                  Keys(scalars.seed),
                  item_size(format.param_dtype),
                  item_size(grad_dtype),
                  format.moment_item(),
                  format.master_item()};
  const bool coded = format.moments == MomentFormat::kInt8;
  int64_t taken = 0;
  for (int64_t done = 0; done < n; done += taken) {
    const int64_t here = at + done;
    taken = std::min<int64_t>(n - done, kChunk);
    const int64_t whole = coded ? kBlockElements : kElements;  // the tail is a chunk of its own
    if (taken > whole) taken = taken / whole * whole;
    const Chunk run{static_cast<char*>(param) + done * task.param_item,
                    static_cast<const char*>(grad) + done * task.grad_item,
                    state.exp_avg + here * task.moment_item,
                    state.exp_avg_sq + here * task.moment_item,
                    task.master_item == 0 ? nullptr : state.master + here * task.master_item,
                    coded ? state.scales + here / kBlockElements : nullptr,
                    coded ? state.sq_scales + here / kBlockElements : nullptr,
                    rng_offset + done,
                    int(taken)};
    if (taken % kElements == 0) {
      update_chunk(run, task);
    } else {
      update_tail(run, task);
    }
  }
}

}  // namespace radam_fused
#endif
