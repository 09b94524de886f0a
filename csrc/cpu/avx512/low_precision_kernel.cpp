// The update over stored forms in AVX-512, 32 elements at a time in registers. Which form it is, is asked anew for
// every 32: a branch that always goes the same way costs less than passes over arrays, and there are a hundred forms.
//
// It goes by runs of a few blocks: where one loop ends and the next begins, as random numbers are made ahead and codes
// of 8 bits wait for the largest of their block, a processor finishes what it has begun, and that is to be rare.
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

// Where a run's elements are.
struct Chunk {
  char* param;
  const char* grad;
  char* exp_avg;
  char* exp_avg_sq;
  char* master;
  float* scales;  // of moments in 8 bits
  float* sq_scales;
  int64_t rng_offset;
  int n;  // whole vectors; of moments in 8 bits whole blocks, if more than one
};

struct Task {
  StateFormat format;
  int grad_dtype;
  StepScalars<float> scalars;
  Keys keys;
  int64_t param_item, grad_item, moment_item, master_item;
};

// Random numbers for parameters and for moments, where they are rounded by any.
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

// Asks for what an array holds some way after its i-th element: prefetch.h. 32 elements are two lines at most.
RADAM_VEC void prefetch_at(const char* array, int64_t item, int i) {
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

// Moments in float16. Two loops: the step's roots and divisions, and those of what is stored wait for one another.
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

// Three loops: the step itself; the second moments' codes, and the first moments' quotients; and their codes. Between
// them a block's scale is found.
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
      Pair root = decoded_roots(at.exp_avg_sq, i, sq_scale);
      Pair m = decoded_firsts(at.exp_avg, i, scale, root);
      Pair v = product(root, root);
      step<true>(x, g, m, v, root, task.scalars, compensated);
      write_or_hold(at.param, at.master, task.format, x, random.parameter, task.scalars, i);
      firsts[i / kElements] = m;
      roots[i / kElements] = root;
      found = larger(found, root);
    }
    largest[b] = found;
  }
  for (int b = 0; b < blocks; ++b) at.sq_scales[b] = scale_from(_mm512_reduce_max_epu32(largest[b]));
  for (int b = 0; b < blocks; ++b) {
    const F scale = all(at.sq_scales[b]), factor = all(RootCode::factor(at.sq_scales[b]));
    U found = _mm512_setzero_si512();
    for (int k = b * kVectors; k * kElements < std::min(at.n, (b + 1) * kBlockElements); ++k) {
      store_codes(at.exp_avg_sq, k * kElements,
                  encode_roots(roots[k], firsts[k], factor, scale, random.moments.at(k * kElements)));
      found = larger(found, firsts[k]);
    }
    largest[b] = found;
  }
  for (int b = 0; b < blocks; ++b) at.scales[b] = FirstCode::scale(_mm512_reduce_max_epu32(largest[b]));
  for (int b = 0; b < blocks; ++b) {
    const F factor = all(FirstCode::factor(at.scales[b]));
    for (int k = b * kVectors; k * kElements < std::min(at.n, (b + 1) * kBlockElements); ++k) {
      store_codes(at.exp_avg, k * kElements,
                  encode_firsts(firsts[k], factor, swapped_bytes(random.moments.at(k * kElements))));
    }
  }
}

RADAM_AVX512 void update_run(const Chunk& at, const Task& task) {
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

// An array of a few elements, filled up with zeros to whole vectors.
struct alignas(64) Filled {
  char bytes[kBlockElements * sizeof(float)];

  RADAM_VEC Filled(const char* from, int64_t item, int n, int whole) {
    std::memset(bytes, 0, whole * item);
    if (item != 0) std::memcpy(bytes, from, n * item);
  }
  RADAM_VEC void give_back(char* to, int64_t item, int n) const {
    if (item != 0) std::memcpy(to, bytes, n * item);
  }
};

// Elements that do not fill vectors.
RADAM_AVX512 void update_part(const Chunk& at, const Task& task) {
  const int n = at.n, whole = (n + kElements - 1) / kElements * kElements;
  Filled param(at.param, task.param_item, n, whole), grad(at.grad, task.grad_item, n, whole);
  Filled exp_avg(at.exp_avg, task.moment_item, n, whole), exp_avg_sq(at.exp_avg_sq, task.moment_item, n, whole);
  Filled master(at.master, task.master_item, n, whole);
  update_run({param.bytes, grad.bytes, exp_avg.bytes, exp_avg_sq.bytes, master.bytes, at.scales, at.sq_scales,
              at.rng_offset, whole},
             task);
  param.give_back(at.param, task.param_item, n);
  exp_avg.give_back(at.exp_avg, task.moment_item, n);
  exp_avg_sq.give_back(at.exp_avg_sq, task.moment_item, n);
  master.give_back(at.master, task.master_item, n);
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
    const int64_t whole = coded ? kBlockElements : kElements;  // what is not may have to be taken as one
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
      update_run(run, task);
    } else {
      update_part(run, task);
    }
  }
}

}  // namespace radam_fused
#endif
