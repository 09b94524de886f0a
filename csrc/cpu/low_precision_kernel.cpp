// The update of low-precision state, a block of kBlockElements at a time: read into float32 arrays that stay in the
// first-level cache, updated, and written back. Every loop is over one array or a few, so that compilers vectorise it.
#include "cpu/low_precision_kernel.h"

#include <algorithm>

#include "cpu/cpu_capability.h"
#include "cpu/prefetch.h"
#include "numerics/philox.h"
#include "numerics/quantization.h"
#include "numerics/radam_update.h"

namespace radam_fused {
namespace {

constexpr int kGroups = kBlockElements / kRandsPerCall + 1;  // a block may begin within a group

// A block in float32.
struct alignas(64) Block {
  float x[kBlockElements];             // the parameter
  float g[kBlockElements];             // the gradient
  float m[kBlockElements];             // the first moment
  float v[kBlockElements];             // the second moment, or its square root while it is encoded
  float compensation[kBlockElements];  // for MasterFormat::kKahan
  uint32_t code[kBlockElements];       // of an 8-bit moment
  uint16_t rand16[kGroups * kRandsPerCall];
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

// The random numbers of a block, in the order of memory: the lower half of each word comes first.
RADAM_HD void fill_random(Block& block, uint64_t first_group, int groups, uint32_t stream,
                          const StepScalars<float>& scalars) {
  alignas(64) uint32_t words[kGroups][4];
  for (int k = 0; k < groups; ++k) {
    const Philox random = philox(first_group + uint64_t(k), scalars.step, stream, scalars.seed);
    for (int w = 0; w < 4; ++w) words[k][w] = random.word[w];
  }
  static_assert(sizeof(words) == sizeof(block.rand16), "two random numbers per word");
  std::memcpy(block.rand16, words, sizeof(words));
}

template <typename P>
RADAM_HD void read_as(Block& block, const P* __restrict p, const StateFormat& format, const char* master) {
  const int n = block.n;
  if (format.master == MasterFormat::kFloat32) {
    const float* __restrict copy = reinterpret_cast<const float*>(master);
    for (int i = 0; i < n; ++i) block.x[i] = from_master(p[i], copy[i]);
    return;
  }
  widen_all(block.x, p, n);
  if (format.master == MasterFormat::kKahan) {
    widen_all(block.compensation, reinterpret_cast<const P*>(master), n);
    for (int i = 0; i < n; ++i) block.x[i] = block.x[i] + block.compensation[i];
  }
}

RADAM_HD void read_parameter(Block& block, const void* p, const StateFormat& format, const char* master) {
  if (format.master == MasterFormat::kSplit) {
    const bfloat16* __restrict high = static_cast<const bfloat16*>(p);
    const int16_t* __restrict low = reinterpret_cast<const int16_t*>(master);
    for (int i = 0; i < block.n; ++i) block.x[i] = join(high[i], low[i]);
  } else if (format.param_dtype == kBFloat16) {
    read_as(block, static_cast<const bfloat16*>(p), format, master);
  } else if (format.param_dtype == kFloat16) {
    read_as(block, static_cast<const float16*>(p), format, master);
  } else {
    widen_all(block.x, static_cast<const float*>(p), block.n);
  }
}

RADAM_HD void read_moments(Block& block, const StateFormat& format, const StateBuffers& state, int64_t at) {
  const int n = block.n;
  if (format.moments == MomentFormat::kInt8) {
    const auto* __restrict m = reinterpret_cast<const int8_t*>(state.exp_avg) + at;
    const auto* __restrict v = reinterpret_cast<const uint8_t*>(state.exp_avg_sq) + at;
    const float scale = state.scales[at / kBlockElements], sq_scale = state.sq_scales[at / kBlockElements];
    for (int i = 0; i < n; ++i) {
      const float octaves = RootCode::octaves(v[i]);
      const float root = RootCode::decode(octaves, sq_scale);
      block.m[i] = FirstCode::decode(m[i], scale, octaves);
      block.v[i] = root * root;
    }
    return;
  }
  const bool halves = format.moments == MomentFormat::kFloat16;
  const int dtype = format.moments == MomentFormat::kFloat32 ? kFloat32 : halves ? kFloat16 : kBFloat16;
  widen_all(block.m, state.exp_avg, dtype, at, n);
  widen_all(block.v, state.exp_avg_sq, dtype, at, n);
  for (int i = 0; i < n && halves; ++i) {  // HalfRoot::decode, HalfFirst::decode
    const float root = block.v[i] * block.v[i];
    block.m[i] = block.m[i] * root;
    block.v[i] = root * root;
  }
}

// A loop per pair of branches in common use, as in step_kernel.cpp: of one loop with all branches GCC 12 vectorises
// only a part.
RADAM_HD void update_all(Block& block, const StepScalars<float>& scalars, const UpdateBranches& branches) {
  for (int i = 0; i < block.n; ++i) update_element(block.x[i], block.g[i], block.m[i], block.v[i], scalars, branches);
}

RADAM_HD void update_all(Block& block, const StepScalars<float>& scalars) {
  const UpdateBranches branches = UpdateBranches::of(scalars);
  if (!branches.v_by_difference) {
    update_all(block, scalars, branches);
  } else if (branches.decays) {
    update_all(block, scalars, UpdateBranches{true, true});
  } else {
    update_all(block, scalars, UpdateBranches{true, false});
  }
}

template <typename P>
RADAM_HD void step_compensated(Block& block, P* __restrict p, P* __restrict master, const StepScalars<float>& scalars) {
  const int n = block.n;
  const UpdateBranches branches = UpdateBranches::of(scalars);
  for (int i = 0; i < n; ++i) {
    const float d = update_moments(block.x[i], block.g[i], block.m[i], block.v[i], scalars, branches);
    block.x[i] = decrease(block.x[i], d, scalars, branches);
  }
  if (scalars.update_rule == UpdateRule::kNoParamUpdate) return;
  for (int i = 0; i < n; ++i) {
    float after = widen(p[i]);
    compensate<P>(after, block.compensation[i], block.x[i]);
    p[i] = Narrow<P>::from(after);
  }
  for (int i = 0; i < n; ++i) master[i] = Narrow<P>::from(block.compensation[i]);
}

template <typename P>
RADAM_HD void write_as(Block& block, P* __restrict p, const StateFormat& format, char* master, int offset) {
  const int n = block.n;
  if (format.master == MasterFormat::kFloat32) {
    std::memcpy(master, block.x, n * sizeof(float));
    for (int i = 0; i < n; ++i) p[i] = Parameter<P>::from(block.x[i]);
  } else if (format.stochastic) {
    const uint16_t* rand16 = block.rand16 + offset;
    for (int i = 0; i < n; ++i) p[i] = Stochastic<P>::from(block.x[i], rand16[i]);
  } else {
    for (int i = 0; i < n; ++i) p[i] = Narrow<P>::from(block.x[i]);
  }
}

RADAM_HD void write_parameter(Block& block, void* p, const StateFormat& format, char* master, int offset) {
  if (format.master == MasterFormat::kSplit) {
    bfloat16* __restrict high = static_cast<bfloat16*>(p);
    int16_t* __restrict low = reinterpret_cast<int16_t*>(master);
    for (int i = 0; i < block.n; ++i) {
      high[i] = Parameter<bfloat16>::from(block.x[i]);
      low[i] = low_bits(block.x[i]);
    }
  } else if (format.param_dtype == kBFloat16) {
    write_as(block, static_cast<bfloat16*>(p), format, master, offset);
  } else if (format.param_dtype == kFloat16) {
    write_as(block, static_cast<float16*>(p), format, master, offset);
  } else {
    std::memcpy(p, block.x, block.n * sizeof(float));
  }
}

RADAM_HD void narrow_moments(const Block& block, bfloat16* __restrict m, bfloat16* __restrict v, int offset) {
  const uint16_t* rand16 = block.rand16 + offset;
  for (int i = 0; i < block.n; ++i) {
    m[i] = Stochastic<bfloat16>::from(block.m[i], swap_bytes(rand16[i]));
    v[i] = Stochastic<bfloat16>::from(block.v[i], rand16[i]);
  }
}

RADAM_HD void narrow_moments(Block& block, float16* __restrict m, float16* __restrict v, int offset) {
  const uint16_t* rand16 = block.rand16 + offset;
  const int n = block.n;
  for (int i = 0; i < n; ++i) block.v[i] = HalfRoot::at_least_min(square_root(square_root(block.v[i])));
  for (int i = 0; i < n; ++i) v[i] = Stochastic<float16>::from(block.v[i], rand16[i]);
  widen_all(block.v, v, n);
  for (int i = 0; i < n; ++i) block.m[i] = HalfFirst::quotient(block.m[i], block.v[i] * block.v[i]);
  for (int i = 0; i < n; ++i) block.m[i] = HalfFirst::limited(block.m[i]);
  for (int i = 0; i < n; ++i) m[i] = Stochastic<float16>::from(block.m[i], swap_bytes(rand16[i]));
}

RADAM_HD void encode_moments(Block& block, const StateBuffers& state, int64_t at, int offset) {
  auto* __restrict m = reinterpret_cast<int8_t*>(state.exp_avg) + at;
  auto* __restrict v = reinterpret_cast<uint8_t*>(state.exp_avg_sq) + at;
  const uint16_t* rand16 = block.rand16 + offset;
  const int n = block.n;
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    block.v[i] = square_root(block.v[i]);
    largest = std::max(largest, magnitude_bits(block.v[i]));
  }
  const BlockScale sq_scale = RootCode::scale(largest);
  largest = 0;
  for (int i = 0; i < n; ++i) {
    block.code[i] = code_of(RootCode::encode(block.v[i], sq_scale.factor, rand16[i])) & sq_scale.codes;
    block.m[i] = FirstCode::quotient(block.m[i], RootCode::octaves(block.code[i]));
  }
  for (int i = 0; i < n; ++i) v[i] = uint8_t(block.code[i]);
  for (int i = 0; i < n; ++i) largest = std::max(largest, magnitude_bits(block.m[i]));
  const BlockScale scale = FirstCode::scale(largest, sq_scale);
  for (int i = 0; i < n; ++i) {
    block.code[i] = code_of(FirstCode::encode(block.m[i], scale.factor, swap_bytes(rand16[i]))) & scale.codes;
  }
  for (int i = 0; i < n; ++i) m[i] = int8_t(block.code[i]);
  state.scales[at / kBlockElements] = scale.scale;
  state.sq_scales[at / kBlockElements] = sq_scale.scale;
}

RADAM_HD void write_moments(Block& block, const StateFormat& format, const StateBuffers& state, int64_t at,
                            int offset) {
  switch (format.moments) {
    case MomentFormat::kFloat32:
      std::memcpy(reinterpret_cast<float*>(state.exp_avg) + at, block.m, block.n * sizeof(float));
      std::memcpy(reinterpret_cast<float*>(state.exp_avg_sq) + at, block.v, block.n * sizeof(float));
      return;
    case MomentFormat::kBFloat16:
      return narrow_moments(block, reinterpret_cast<bfloat16*>(state.exp_avg) + at,
                            reinterpret_cast<bfloat16*>(state.exp_avg_sq) + at, offset);
    case MomentFormat::kFloat16:
      return narrow_moments(block, reinterpret_cast<float16*>(state.exp_avg) + at,
                            reinterpret_cast<float16*>(state.exp_avg_sq) + at, offset);
    case MomentFormat::kInt8:
      return encode_moments(block, state, at, offset);
  }
}

// Prefetches an array's next block but one or two.
RADAM_HD void prefetch_block(const void* block, int64_t item) {
  const char* ahead = static_cast<const char*>(block) + kPrefetchBytes;
  for (int64_t line = 0; line < kBlockElements * item; line += kLineBytes) __builtin_prefetch(ahead + line);
}

// Updates block.n elements, which are a block from `at` in the flat buffers, or a part of one.
RADAM_HD void update_block(Block& block, char* param, const void* grad, int grad_dtype, int64_t grad_at,
                           const StateFormat& format, const StateBuffers& state, int64_t at, int64_t rng_offset,
                           const StepScalars<float>& scalars) {
  char* master = state.master + at * format.master_item();
  const int64_t moment_item = format.moment_item();
  prefetch_block(param, item_size(format.param_dtype));
  prefetch_block(static_cast<const char*>(grad) + grad_at * item_size(grad_dtype), item_size(grad_dtype));
  prefetch_block(state.exp_avg + at * moment_item, moment_item);
  prefetch_block(state.exp_avg_sq + at * moment_item, moment_item);
  if (state.master != nullptr) prefetch_block(master, format.master_item());

  const int offset = int(rng_offset % kRandsPerCall);
  const auto group = uint64_t(rng_offset / kRandsPerCall);
  const int groups = (offset + block.n + kRandsPerCall - 1) / kRandsPerCall;
  read_parameter(block, param, format, master);
  widen_all(block.g, grad, grad_dtype, grad_at, block.n);
  read_moments(block, format, state, at);
  if (format.master == MasterFormat::kKahan && format.param_dtype == kBFloat16) {
    step_compensated(block, reinterpret_cast<bfloat16*>(param), reinterpret_cast<bfloat16*>(master), scalars);
  } else if (format.master == MasterFormat::kKahan) {
    step_compensated(block, reinterpret_cast<float16*>(param), reinterpret_cast<float16*>(master), scalars);
  } else {
    update_all(block, scalars);
    if (scalars.update_rule == UpdateRule::kNoParamUpdate) {
      // The parameter stays as it is, bit for bit; a master copy takes over what user code has written to it.
      if (format.master == MasterFormat::kFloat32) std::memcpy(master, block.x, block.n * sizeof(float));
    } else {
      if (format.stochastic) fill_random(block, group, groups, kParamStream, scalars);
      write_parameter(block, param, format, master, offset);
    }
  }
  if (format.moments != MomentFormat::kFloat32) fill_random(block, group, groups, kMomentStream, scalars);
  write_moments(block, format, state, at, offset);
}

RADAM_HD void update_span(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                          const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n, const double* columns) {
  const StepScalars<float> scalars = StepScalars<float>::from(columns);
  const int64_t param_item = item_size(format.param_dtype);
  Block block;
  for (int64_t done = 0; done < n; done += block.n) {
    block.n = int(std::min(n - done, kBlockElements - (at + done) % kBlockElements));
    update_block(block, static_cast<char*>(param) + done * param_item, grad, grad_dtype, done, format, state, at + done,
                 rng_offset + done, scalars);
  }
}

void update_baseline(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                     const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n, const double* scalars) {
  update_span(param, grad, grad_dtype, format, state, at, rng_offset, n, scalars);
}

#if RADAM_X86
RADAM_AVX2 void update_avx2(void* param, const void* grad, int grad_dtype, const StateFormat& format,
                            const StateBuffers& state, int64_t at, int64_t rng_offset, int64_t n,
                            const double* scalars) {
  update_span(param, grad, grad_dtype, format, state, at, rng_offset, n, scalars);
}
#endif

}  // namespace

LowPrecisionKernel select_low_precision_kernel() {
#if RADAM_X86
  if (cpu_capability() == CpuCapability::kAvx512) return low_precision_avx512;
  if (cpu_capability() == CpuCapability::kAvx2) return update_avx2;
#endif
  return update_baseline;
}

}  // namespace radam_fused
