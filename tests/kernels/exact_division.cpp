// The sequences of csrc/cuda/exact_division.h with approximations that are off by some units in the last place, beside
// sqrtf and `/`, for tests/kernels/test_exact_division.py.
#include "cuda/exact_division.h"

using namespace radam_fused;

namespace {

float moved(float x, int64_t units) { return float_from_bits(bits_from_float(x) + uint32_t(units)); }

}  // namespace

extern "C" {

void roots(const float* x, int64_t n, int64_t units, float* ours, float* theirs) {
  for (int64_t i = 0; i < n; ++i) {
    ours[i] = root_from(x[i], moved(float(1.0 / std::sqrt(double(root_operand(x[i])))), units));
    theirs[i] = sqrtf(x[i]);
  }
}

void quotients(const float* a, const float* b, int64_t n, int64_t units, float* ours, float* theirs) {
  for (int64_t i = 0; i < n; ++i) {
    ours[i] = quotient_from(a[i], b[i], moved(float(1.0 / double(b[i])), units));
    theirs[i] = a[i] / b[i];
  }
}

// Whether a pair is ordinary.
void ordinary(const float* dividend, const float* square, int64_t n, bool* found) {
  for (int64_t i = 0; i < n; ++i) {
    OrdinaryRange range;
    range.add(dividend[i], square[i]);
    found[i] = range.holds();
  }
}
}
