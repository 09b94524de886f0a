// The update over stored forms in AVX-512, 32 elements at a time in registers; those whose moments have 8 bits, a block
// at a time, as their codes go by its largest. Which form it is, is asked anew for every 32: a branch that always goes
// the same way costs less than passes over arrays, and a kernel for each of a hundred forms is none.
#include <algorithm>

#include "draw_lanes.h"
#include "prefetch.h"
#include "step_lanes.h"
#include "stored_kernel.h"

#if RADAM_X86
namespace radam_fused {
namespace lanes {
namespace {

// Where a block's elements are.
struct Block {
  char* param;
  const char* grad;
  char* exp_avg;
  char* exp_avg_sq;
  char* residue;
  float* scale;  // of moments in 8 bits
  float* sq_scale;
  int64_t origin;
  int n;  // whole vectors
};

struct Task {
  Forms forms;
  int grad_dtype;
  Row<float> row;
};

// Random numbers of a block.
struct alignas(64) Draws {
  uint32_t parameter[kBlockWords];
  uint32_t moments[kBlockWords];
};

RADAM_LANES void draw_all(Draws& draws, const Block& at, const Task& task) {
  if (task.forms.stochastic) draw_block(draws.parameter, at.origin, at.n, kForParameter, task.row);
  if (task.forms.moments != Moments::kFloat32) draw_block(draws.moments, at.origin, at.n, kForMoments, task.row);
}

template <typename S>
RADAM_LANES void update_uncoded(const Block& at, const Task& task, const Draws& draws) {
  constexpr bool kRoot = std::is_same_v<S, float16>;
  const bool compensated = task.forms.master == Master::kKahan;
  for (int i = 0; i < at.n; i += kElements) {
    Pair x = read_parameter(at.param, at.residue, task.forms, i);
    const Pair g = pair_at(at.grad, task.grad_dtype, i);
    Pair m = pair_at<S>(at.exp_avg, i), v = pair_at<S>(at.exp_avg_sq, i), root;
    if constexpr (kRoot) v = {_mm512_mul_ps(v.even, v.even), _mm512_mul_ps(v.odd, v.odd)};
    step<kRoot>(x, g, m, v, root, task.row, compensated);
    write_or_hold(at.param, at.residue, task.forms, x, draws.parameter, task.row, i);
    if constexpr (std::is_same_v<S, float>) {
      set_floats(at.exp_avg, i, m);
      set_floats(at.exp_avg_sq, i, v);
    } else {
      const U words = words_at(draws.moments, i);
      set_words(at.exp_avg, i, drawn(S{}, m, others(words)));
      set_words(at.exp_avg_sq, i, drawn(S{}, kRoot ? root : v, words));
    }
  }
}

RADAM_LANES F decode_root(U code, F scale) {
  const F fraction = _mm512_mul_ps(_mm512_cvtepi32_ps(code), all(1.0f / 255.0f));
  return _mm512_mul_ps(scale, _mm512_mul_ps(fraction, fraction));
}
RADAM_LANES F decode_first(U code, F scale, F root) {
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(code), all(1.0f / 127.0f)), scale), root);
}

// RootCode::encode; in `m` then FirstCode::quotient.
RADAM_LANES U encode_root(F root, F& m, F factor, F scale, U draw) {
  U code = code_of(_mm512_mul_ps(root_of(_mm512_abs_ps(root)), factor), draw, 255.0f);
  code = _mm512_mask_max_epi32(code, _mm512_cmp_ps_mask(root, _mm512_setzero_ps(), _CMP_GT_OQ), code, constant<1u>());
  const F decoded = decode_root(code, scale);
  m = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(decoded, _mm512_setzero_ps(), _CMP_GT_OQ), m, decoded);
  return code;
}
RADAM_LANES U encode_first(F quotient, F factor, U draw) {
  const U code = code_of(_mm512_mul_ps(_mm512_abs_ps(quotient), factor), draw, 127.0f);
  return _mm512_mask_sub_epi32(code, _mm512_cmp_ps_mask(quotient, _mm512_setzero_ps(), _CMP_LT_OQ), _mm512_setzero_si512(), code);
}

RADAM_LANES U largest_of(U largest, const Pair& x) {
  return _mm512_max_epu32(largest, _mm512_max_epu32(magnitude_bits(x.even), magnitude_bits(x.odd)));
}

RADAM_LANES void update_coded(const Block& at, const Task& task, const Draws& draws) {
  const bool compensated = task.forms.master == Master::kKahan;
  const F old_scale = all(*at.scale), old_sq_scale = all(*at.sq_scale);
  Pair firsts[kBlockElements / kElements], roots[kBlockElements / kElements];
  U largest = _mm512_setzero_si512();
  for (int i = 0; i < at.n; i += kElements) {
    Pair x = read_parameter(at.param, at.residue, task.forms, i);
    const Pair g = pair_at(at.grad, task.grad_dtype, i);
    const U codes = codes_at(at.exp_avg_sq, i), signed_codes = codes_at(at.exp_avg, i);
    Pair root = {decode_root(_mm512_and_si512(codes, constant<0xffu>()), old_sq_scale),
                 decode_root(_mm512_srli_epi32(codes, 8), old_sq_scale)};
    Pair v = {_mm512_mul_ps(root.even, root.even), _mm512_mul_ps(root.odd, root.odd)};
    Pair m = {decode_first(_mm512_srai_epi32(_mm512_slli_epi32(signed_codes, 24), 24), old_scale, root.even),
              decode_first(_mm512_srai_epi32(_mm512_slli_epi32(signed_codes, 16), 24), old_scale, root.odd)};
    step<true>(x, g, m, v, root, task.row, compensated);
    write_or_hold(at.param, at.residue, task.forms, x, draws.parameter, task.row, i);
    firsts[i / kElements] = m;
    roots[i / kElements] = root;
    largest = largest_of(largest, root);
  }
  const float sq_scale = scale_from(_mm512_reduce_max_epu32(largest));
  const F sq_factor = all(RootCode::factor(sq_scale)), all_sq_scale = all(sq_scale);
  largest = _mm512_setzero_si512();
  for (int i = 0; i < at.n; i += kElements) {
    const U words = words_at(draws.moments, i);
    const Pair& root = roots[i / kElements];
    Pair& m = firsts[i / kElements];
    const U even = encode_root(root.even, m.even, sq_factor, all_sq_scale, even_of(words));
    const U odd = encode_root(root.odd, m.odd, sq_factor, all_sq_scale, odd_of(words));
    set_codes(at.exp_avg_sq, i, even, odd);
    largest = largest_of(largest, m);
  }
  const float scale = FirstCode::scale(_mm512_reduce_max_epu32(largest));
  const F factor = all(FirstCode::factor(scale));
  for (int i = 0; i < at.n; i += kElements) {
    const U words = others(words_at(draws.moments, i));
    const Pair& quotient = firsts[i / kElements];
    set_codes(at.exp_avg, i, encode_first(quotient.even, factor, even_of(words)),
              encode_first(quotient.odd, factor, odd_of(words)));
  }
  *at.scale = scale;
  *at.sq_scale = sq_scale;
}

RADAM_AVX512 void update_block(const Block& at, const Task& task) {
  Draws draws;
  draw_all(draws, at, task);
  switch (task.forms.moments) {
    case Moments::kFloat32:
      return update_uncoded<float>(at, task, draws);
    case Moments::kBFloat16:
      return update_uncoded<bfloat16>(at, task, draws);
    case Moments::kFloat16:
      return update_uncoded<float16>(at, task, draws);
    case Moments::kInt8:
      return update_coded(at, task, draws);
  }
}

// Elements that do not fill vectors pass through arrays that are filled up with zeros.
RADAM_AVX512 void update_part(const Block& at, const Task& task) {
  struct alignas(64) Array {
    char bytes[kBlockElements * sizeof(float)];
  };
  Array param{}, grad{}, exp_avg{}, exp_avg_sq{}, residue{};
  const size_t param_bytes = at.n * item_size(task.forms.param_dtype), moment_bytes = at.n * task.forms.moment_item();
  const size_t residue_bytes = at.n * task.forms.residue_item();
  std::memcpy(param.bytes, at.param, param_bytes);
  std::memcpy(grad.bytes, at.grad, at.n * item_size(task.grad_dtype));
  std::memcpy(exp_avg.bytes, at.exp_avg, moment_bytes);
  std::memcpy(exp_avg_sq.bytes, at.exp_avg_sq, moment_bytes);
  if (residue_bytes != 0) std::memcpy(residue.bytes, at.residue, residue_bytes);
  const int whole = (at.n + kElements - 1) / kElements * kElements;
  update_block({param.bytes, grad.bytes, exp_avg.bytes, exp_avg_sq.bytes, residue.bytes, at.scale, at.sq_scale,
                at.origin, whole},
               task);
  std::memcpy(at.param, param.bytes, param_bytes);
  std::memcpy(at.exp_avg, exp_avg.bytes, moment_bytes);
  std::memcpy(at.exp_avg_sq, exp_avg_sq.bytes, moment_bytes);
  if (residue_bytes != 0) std::memcpy(at.residue, residue.bytes, residue_bytes);
}

// Asks for an array's next block but one or two, as prefetch.h says.
RADAM_HD void prefetch_block(const void* block, int64_t item) {
  const char* ahead = static_cast<const char*>(block) + kPrefetchBytes;
  for (int64_t line = 0; line < kBlockElements * item; line += kLineBytes) __builtin_prefetch(ahead + line);
}

}  // namespace
}  // namespace lanes

RADAM_AVX512 void update_stored_avx512(void* param, const void* grad, int grad_dtype, const Forms& forms,
                                       const StateBuffers& state, int64_t at, int64_t origin, int64_t n,
                                       const double* columns) {
  using namespace lanes;
  const Task task{forms, grad_dtype, Row<float>::from(columns)};
  const int64_t param_item = item_size(forms.param_dtype), grad_item = item_size(grad_dtype);
  const int64_t moment_item = forms.moment_item(), residue_item = forms.residue_item();
  const bool coded = forms.moments == Moments::kInt8;
  int64_t taken = 0;
  for (int64_t done = 0; done < n; done += taken) {
    const int64_t here = at + done;
    taken = std::min(n - done, kBlockElements - here % kBlockElements);
    const Block block{static_cast<char*>(param) + done * param_item,
                      static_cast<const char*>(grad) + done * grad_item,
                      state.exp_avg + here * moment_item,
                      state.exp_avg_sq + here * moment_item,
                      residue_item == 0 ? nullptr : state.residue + here * residue_item,
                      coded ? state.scales + here / kBlockElements : nullptr,
                      coded ? state.sq_scales + here / kBlockElements : nullptr,
                      origin + done,
                      int(taken)};
    prefetch_block(block.param, param_item);
    prefetch_block(block.grad, grad_item);
    prefetch_block(block.exp_avg, moment_item);
    prefetch_block(block.exp_avg_sq, moment_item);
    if (residue_item != 0) prefetch_block(block.residue, residue_item);
    if (taken % kElements == 0) {
      update_block(block, task);
    } else {
      update_part(block, task);
    }
  }
}

}  // namespace radam_fused
#endif
