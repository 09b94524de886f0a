// The update over stored forms, a block of kBlockElements at a time: widened into arrays that stay in the first cache,
// updated, and narrowed again. Every loop is over one array or a few of them, and vectorises.
#include "cpu/low_precision_kernel.h"

#include <algorithm>

#include "cpu/cpu_capability.h"
#include "cpu/prefetch.h"
#include "numerics/philox.h"
#include "numerics/quantization.h"

namespace radam_fused {
namespace {

constexpr int kGroups = kBlockElements / kDraws + 1;  // a block may begin within a group

// A block in the computation's form.
struct alignas(64) Block {
  float x[kBlockElements];             // the parameter
  float g[kBlockElements];             // the gradient
  float m[kBlockElements];             // the first moment
  float v[kBlockElements];             // the second, or while it is encoded its root
  float compensation[kBlockElements];  // under Master::kKahan
  int32_t code[kBlockElements];        // of a moment in 8 bits
  uint16_t draw[kGroups * kDraws];
  int n;
};

template <typename S>
RADAM_HD void widen_all(float* __restrict to, const S* __restrict from, int n) {
  for (int i = 0; i < n; ++i) to[i] = widen(from[i]);
}

RADAM_HD void widen_all(float* to, const void* from, int dtype, int64_t at, int n) {
  switch (dtype) {
    case kFloat32:
      return widen_all(to, static_cast<const float*>(from) + at, n);
    case kFloat16:
      return widen_all(to, static_cast<const float16*>(from) + at, n);
    default:
      return widen_all(to, static_cast<const bfloat16*>(from) + at, n);
  }
}

// The random numbers of a block, as the words of its groups lie in memory: the lower half of each comes first.
RADAM_HD void draw_all(Block& block, uint64_t first_group, int groups, uint32_t stream, const Row<float>& row) {
  alignas(64) uint32_t words[kGroups][4];
  for (int k = 0; k < groups; ++k) {
    const Philox random = philox(first_group + uint64_t(k), row.step, stream, row.seed);
    for (int w = 0; w < 4; ++w) words[k][w] = random.word[w];
  }
  static_assert(sizeof(words) == sizeof(block.draw), "as many halves as draws");
  std::memcpy(block.draw, words, sizeof(words));
}

template <typename P>
RADAM_HD void read_as(Block& block, const P* __restrict p, const Forms& forms, const char* residue) {
  const int n = block.n;
  if (forms.master == Master::kFloat32) {
    const float* __restrict master = reinterpret_cast<const float*>(residue);
    for (int i = 0; i < n; ++i) block.x[i] = from_master(p[i], master[i]);
    return;
  }
  widen_all(block.x, p, n);
  if (forms.master == Master::kKahan) {
    widen_all(block.compensation, reinterpret_cast<const P*>(residue), n);
    for (int i = 0; i < n; ++i) block.x[i] = block.x[i] + block.compensation[i];
  }
}

RADAM_HD void read_parameter(Block& block, const void* p, const Forms& forms, const char* residue) {
  if (forms.master == Master::kSplit) {
    const bfloat16* __restrict high = static_cast<const bfloat16*>(p);
    const int16_t* __restrict low = reinterpret_cast<const int16_t*>(residue);
    for (int i = 0; i < block.n; ++i) block.x[i] = join(high[i], low[i]);
  } else if (forms.param_dtype == kBFloat16) {
    read_as(block, static_cast<const bfloat16*>(p), forms, residue);
  } else if (forms.param_dtype == kFloat16) {
    read_as(block, static_cast<const float16*>(p), forms, residue);
  } else {
    widen_all(block.x, static_cast<const float*>(p), block.n);
  }
}

RADAM_HD void read_moments(Block& block, const Forms& forms, const StateBuffers& state, int64_t at) {
  const int n = block.n;
  if (forms.moments == Moments::kInt8) {
    const auto* __restrict m = reinterpret_cast<const int8_t*>(state.exp_avg) + at;
    const auto* __restrict v = reinterpret_cast<const uint8_t*>(state.exp_avg_sq) + at;
    const float scale = state.scales[at / kBlockElements], sq_scale = state.sq_scales[at / kBlockElements];
    for (int i = 0; i < n; ++i) {
      const float root = RootCode::decode(v[i], sq_scale);
      block.m[i] = FirstCode::decode(m[i], scale, root);
      block.v[i] = root * root;
    }
    return;
  }
  const bool halves = forms.moments == Moments::kFloat16;
  const int dtype = forms.moments == Moments::kFloat32 ? kFloat32 : halves ? kFloat16 : kBFloat16;
  widen_all(block.m, state.exp_avg, dtype, at, n);
  widen_all(block.v, state.exp_avg_sq, dtype, at, n);
  for (int i = 0; i < n && halves; ++i) {  // HalfRoot::decode, HalfFirst::decode
    const float root = block.v[i] * block.v[i];
    block.m[i] = block.m[i] * root;
    block.v[i] = root * root;
  }
}

// A loop for each of the lines that are in use, as in kernels.cpp: of one with all of them GCC 12 vectorises not all.
RADAM_HD void update_all(Block& block, const Row<float>& row, const Lines& lines) {
  for (int i = 0; i < block.n; ++i) update_element(block.x[i], block.g[i], block.m[i], block.v[i], row, lines);
}

RADAM_HD void update_all(Block& block, const Row<float>& row) {
  const Lines lines = Lines::of(row);
  if (!lines.by_difference) {
    update_all(block, row, lines);
  } else if (lines.decays) {
    update_all(block, row, Lines{true, true});
  } else {
    update_all(block, row, Lines{true, false});
  }
}

template <typename P>
RADAM_HD void step_compensated(Block& block, P* __restrict p, P* __restrict residue, const Row<float>& row) {
  const int n = block.n;
  const Lines lines = Lines::of(row);
  for (int i = 0; i < n; ++i) {
    const float d = advance(block.x[i], block.g[i], block.m[i], block.v[i], row, lines);
    block.x[i] = decrease(block.x[i], d, row, lines);
  }
  if (row.direction == Direction::kHold) return;
  for (int i = 0; i < n; ++i) {
    float after = widen(p[i]);
    compensate<P>(after, block.compensation[i], block.x[i]);
    p[i] = Narrow<P>::from(after);
  }
  for (int i = 0; i < n; ++i) residue[i] = Narrow<P>::from(block.compensation[i]);
}

template <typename P>
RADAM_HD void write_as(Block& block, P* __restrict p, const Forms& forms, char* residue, int offset) {
  const int n = block.n;
  if (forms.master == Master::kFloat32) {
    std::memcpy(residue, block.x, n * sizeof(float));
    for (int i = 0; i < n; ++i) p[i] = Parameter<P>::from(block.x[i]);
  } else if (forms.stochastic) {
    const uint16_t* draw = block.draw + offset;
    for (int i = 0; i < n; ++i) p[i] = Stochastic<P>::from(block.x[i], draw[i]);
  } else {
    for (int i = 0; i < n; ++i) p[i] = Narrow<P>::from(block.x[i]);
  }
}

RADAM_HD void write_parameter(Block& block, void* p, const Forms& forms, char* residue, int offset) {
  if (forms.master == Master::kSplit) {
    bfloat16* __restrict high = static_cast<bfloat16*>(p);
    int16_t* __restrict low = reinterpret_cast<int16_t*>(residue);
    for (int i = 0; i < block.n; ++i) {
      high[i] = Parameter<bfloat16>::from(block.x[i]);
      low[i] = low_bits(block.x[i]);
    }
  } else if (forms.param_dtype == kBFloat16) {
    write_as(block, static_cast<bfloat16*>(p), forms, residue, offset);
  } else if (forms.param_dtype == kFloat16) {
    write_as(block, static_cast<float16*>(p), forms, residue, offset);
  } else {
    std::memcpy(p, block.x, block.n * sizeof(float));
  }
}

RADAM_HD void narrow_moments(const Block& block, bfloat16* __restrict m, bfloat16* __restrict v, int offset) {
  const uint16_t* draw = block.draw + offset;
  for (int i = 0; i < block.n; ++i) {
    m[i] = Stochastic<bfloat16>::from(block.m[i], other(draw[i]));
    v[i] = Stochastic<bfloat16>::from(block.v[i], draw[i]);
  }
}

RADAM_HD void narrow_moments(Block& block, float16* __restrict m, float16* __restrict v, int offset) {
  const uint16_t* draw = block.draw + offset;
  const int n = block.n;
  for (int i = 0; i < n; ++i) block.v[i] = HalfRoot::at_least_a_unit(square_root(square_root(block.v[i])));
  for (int i = 0; i < n; ++i) v[i] = Stochastic<float16>::from(block.v[i], draw[i]);
  widen_all(block.v, v, n);
  for (int i = 0; i < n; ++i) block.m[i] = FirstCode::quotient(block.m[i], block.v[i] * block.v[i]);
  for (int i = 0; i < n; ++i) block.m[i] = HalfFirst::limited(block.m[i]);
  for (int i = 0; i < n; ++i) m[i] = Stochastic<float16>::from(block.m[i], other(draw[i]));
}

RADAM_HD void encode_moments(Block& block, const StateBuffers& state, int64_t at, int offset) {
  auto* __restrict m = reinterpret_cast<int8_t*>(state.exp_avg) + at;
  auto* __restrict v = reinterpret_cast<uint8_t*>(state.exp_avg_sq) + at;
  const uint16_t* draw = block.draw + offset;
  const int n = block.n;
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    block.v[i] = square_root(block.v[i]);
    largest = std::max(largest, magnitude_bits(block.v[i]));
  }
  const float sq_scale = scale_from(largest);
  const float sq_factor = RootCode::factor(sq_scale);
  largest = 0;
  for (int i = 0; i < n; ++i) {
    block.code[i] = RootCode::encode(block.v[i], sq_factor, draw[i]);
    block.m[i] = FirstCode::quotient(block.m[i], RootCode::decode(block.code[i], sq_scale));
  }
  for (int i = 0; i < n; ++i) v[i] = uint8_t(block.code[i]);
  for (int i = 0; i < n; ++i) largest = std::max(largest, magnitude_bits(block.m[i]));
  const float scale = FirstCode::scale(largest);
  const float factor = FirstCode::factor(scale);
  for (int i = 0; i < n; ++i) block.code[i] = FirstCode::encode(block.m[i], factor, other(draw[i]));
  for (int i = 0; i < n; ++i) m[i] = int8_t(block.code[i]);
  state.scales[at / kBlockElements] = scale;
  state.sq_scales[at / kBlockElements] = sq_scale;
}

RADAM_HD void write_moments(Block& block, const Forms& forms, const StateBuffers& state, int64_t at, int offset) {
  switch (forms.moments) {
    case Moments::kFloat32:
      std::memcpy(reinterpret_cast<float*>(state.exp_avg) + at, block.m, block.n * sizeof(float));
      std::memcpy(reinterpret_cast<float*>(state.exp_avg_sq) + at, block.v, block.n * sizeof(float));
      return;
    case Moments::kBFloat16:
      return narrow_moments(block, reinterpret_cast<bfloat16*>(state.exp_avg) + at,
                            reinterpret_cast<bfloat16*>(state.exp_avg_sq) + at, offset);
    case Moments::kFloat16:
      return narrow_moments(block, reinterpret_cast<float16*>(state.exp_avg) + at,
                            reinterpret_cast<float16*>(state.exp_avg_sq) + at, offset);
    case Moments::kInt8:
      return encode_moments(block, state, at, offset);
  }
}

// Asks for an array's next block but one or two, as prefetch.h says.
RADAM_HD void prefetch_block(const void* block, int64_t item) {
  const char* ahead = static_cast<const char*>(block) + kPrefetchBytes;
  for (int64_t line = 0; line < kBlockElements * item; line += kLineBytes) __builtin_prefetch(ahead + line);
}

// The elements of a block that begins at `at` in the flat buffers, or within one.
RADAM_HD void update_block(Block& block, char* param, const void* grad, int grad_dtype, int64_t grad_at,
                           const Forms& forms, const StateBuffers& state, int64_t at, int64_t origin,
                           const Row<float>& row) {
  char* residue = state.residue + at * forms.residue_item();
  const int64_t moment_item = forms.moment_item();
  prefetch_block(param, item_size(forms.param_dtype));
  prefetch_block(static_cast<const char*>(grad) + grad_at * item_size(grad_dtype), item_size(grad_dtype));
  prefetch_block(state.exp_avg + at * moment_item, moment_item);
  prefetch_block(state.exp_avg_sq + at * moment_item, moment_item);
  if (state.residue != nullptr) prefetch_block(residue, forms.residue_item());

  const int offset = int(origin % kDraws);
  const auto group = uint64_t(origin / kDraws);
  const int groups = (offset + block.n + kDraws - 1) / kDraws;
  read_parameter(block, param, forms, residue);
  widen_all(block.g, grad, grad_dtype, grad_at, block.n);
  read_moments(block, forms, state, at);
  if (forms.master == Master::kKahan && forms.param_dtype == kBFloat16) {
    step_compensated(block, reinterpret_cast<bfloat16*>(param), reinterpret_cast<bfloat16*>(residue), row);
  } else if (forms.master == Master::kKahan) {
    step_compensated(block, reinterpret_cast<float16*>(param), reinterpret_cast<float16*>(residue), row);
  } else {
    update_all(block, row);
    if (row.direction == Direction::kHold) {  // the parameter stays bit for bit; a copy takes over what it was written
      if (forms.master == Master::kFloat32) std::memcpy(residue, block.x, block.n * sizeof(float));
    } else {
      if (forms.stochastic) draw_all(block, group, groups, kForParameter, row);
      write_parameter(block, param, forms, residue, offset);
    }
  }
  if (forms.moments != Moments::kFloat32) draw_all(block, group, groups, kForMoments, row);
  write_moments(block, forms, state, at, offset);
}

RADAM_HD void update_span(void* param, const void* grad, int grad_dtype, const Forms& forms, const StateBuffers& state,
                          int64_t at, int64_t origin, int64_t n, const double* columns) {
  const Row<float> row = Row<float>::from(columns);
  const int64_t param_item = item_size(forms.param_dtype);
  Block block;
  for (int64_t done = 0; done < n; done += block.n) {
    block.n = int(std::min(n - done, kBlockElements - (at + done) % kBlockElements));
    update_block(block, static_cast<char*>(param) + done * param_item, grad, grad_dtype, done, forms, state, at + done,
                 origin + done, row);
  }
}

void span_baseline(void* param, const void* grad, int grad_dtype, const Forms& forms, const StateBuffers& state,
                   int64_t at, int64_t origin, int64_t n, const double* row) {
  update_span(param, grad, grad_dtype, forms, state, at, origin, n, row);
}

#if RADAM_X86
RADAM_AVX2 void span_avx2(void* param, const void* grad, int grad_dtype, const Forms& forms, const StateBuffers& state,
                          int64_t at, int64_t origin, int64_t n, const double* row) {
  update_span(param, grad, grad_dtype, forms, state, at, origin, n, row);
}
#endif

}  // namespace

StoredKernel select_stored_kernel() {
#if RADAM_X86
  if (isa() == Isa::kAvx512) return update_stored_avx512;
  if (isa() == Isa::kAvx2) return span_avx2;
#endif
  return span_baseline;
}

}  // namespace radam_fused
