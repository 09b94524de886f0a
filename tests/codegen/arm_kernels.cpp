// Runs the CPU kernels on made-up tensors and prints a hash of what each leaves behind, for arm_check.py: two machines
// that print the same lines compute the same bits. NaNs of all payloads are one value.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/grad_norm_kernel.h"
#include "cpu/low_precision_kernel.h"
#include "cpu/step_kernel.h"
#include "numerics/dtypes.h"
#include "numerics/grad_norm_order.h"
#include "numerics/radam_update.h"

using namespace radam_fused;

namespace {

constexpr int64_t kElements = 4 * kBlockElements + 77;
constexpr int kSteps = 4;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state_ >> 32);
  }
  // Of any magnitude that a gradient may have; 0 and subnormal at times, infinite where that is asked for.
  double value(bool special) {
    const uint32_t kind = bits() % 64;
    const double fraction = double(bits()) / 4294967296.0 - 0.5;  // by itself: compilers order arguments as they like
    const double number = std::ldexp(fraction, int(bits() % 40) - 32);
    if (kind == 0) return 0.0;
    if (kind == 1) return std::ldexp(number, -110);
    if (special && kind == 2) return number < 0 ? -INFINITY : INFINITY;
    return number;
  }

 private:
  uint64_t state_;
};

using Bytes = std::vector<char>;

void put(int dtype, Bytes& to, int64_t i, double value) {
  if (dtype == kFloat64) {
    std::memcpy(&to[i * 8], &value, 8);
    return;
  }
  const float rounded = float(value);
  if (dtype == kFloat32) std::memcpy(&to[i * 4], &rounded, 4);
  // Any bits of the 16 are a value: those of the float32's upper half.
  uint32_t bits;
  std::memcpy(&bits, &rounded, 4);
  const uint16_t upper = uint16_t(bits >> 16);
  const uint16_t half = uint16_t((upper & 0x8000) | ((upper & 0x7fff) % 0x7c00));
  if (dtype == kBFloat16) std::memcpy(&to[i * 2], &upper, 2);
  if (dtype == kFloat16) std::memcpy(&to[i * 2], &half, 2);
}

Bytes tensor(int dtype, Random& random, bool special) {
  Bytes made(kElements * item_size(dtype));
  for (int64_t i = 0; i < kElements; ++i) put(dtype, made, i, random.value(special));
  return made;
}

// FNV-1a over the elements; `dtype` is kUnsupported for codes and other bits.
uint64_t hash(uint64_t seed, const Bytes& of, int dtype) {
  const int64_t item = dtype == kUnsupported ? 1 : item_size(dtype);
  for (size_t at = 0; at + item <= of.size(); at += item) {
    uint64_t bits = 0;
    std::memcpy(&bits, &of[at], item);
    const bool nan = dtype == kFloat64    ? (bits << 1) > (0x7ffull << 53)
                     : dtype == kFloat32  ? uint32_t(bits << 1) > 0xff000000u
                     : dtype == kFloat16  ? uint16_t(bits << 1) > 0xf800u
                     : dtype == kBFloat16 ? uint16_t(bits << 1) > 0xff00u
                                          : false;
    seed = (seed ^ (nan ? ~0ull : bits)) * 1099511628211u;
  }
  return seed;
}

// One row of scalars: a step of every update rule, with either second moment and either decay.
std::vector<double> scalars(int variant, int step) {
  std::vector<double> row(kScalarColumns, 0.0);
  const double beta2 = variant % 2 ? 0.3 : 0.999;
  row[kOneMinusBeta1] = 0.1;
  row[kBeta2] = beta2;
  row[kOneMinusBeta2] = 1 - beta2;
  row[kEps] = variant % 5 ? 1e-8 : 0.0;
  row[kL2Decay] = variant % 3 == 1 ? 0.01 : 0.0;
  row[kDecayFactor] = variant % 3 == 2 ? 1e-4 : 0.0;
  row[kStepSize] = 1e-3 / step;
  row[kGradScaleFactor] = variant % 4 == 3 ? -0.7 : 1.0;
  row[kUpdateRule] = variant % 3;
  row[kStep] = step;
  row[kSeed] = 17 + variant;
  return row;
}

void full_precision() {
  for (int param = 0; param < kUnsupported; ++param) {
    for (int grad = 0; grad < kUnsupported; ++grad) {
      for (int variant = 0; supported(param, grad) && variant < 12; ++variant) {
        Random random(100 * param + 10 * grad + variant);
        const int moments = moment_dtype(param);
        Bytes p = tensor(param, random, false), m(kElements * item_size(moments)), v(m.size());
        for (int step = 1; step <= kSteps; ++step) {
          const Bytes g = tensor(grad, random, variant > 8);
          const std::vector<double> row = scalars(variant, step);
          const auto wide = StepScalars<double>::from(row.data());
          const auto narrow = StepScalars<float>::from(row.data());
          const StepKernel kernel = select_step_kernel(param, grad, UpdateBranches::of(narrow));
          kernel(p.data(), g.data(), m.data(), v.data(), kElements,
                 moments == kFloat64 ? static_cast<const void*>(&wide) : &narrow);
        }
        const uint64_t found = hash(hash(hash(0, p, param), m, moments), v, moments);
        std::printf("step %d %d %d %016llx\n", param, grad, variant, (unsigned long long)found);
      }
    }
  }
}

void low_precision(const StateFormat& format, int grad) {
  const LowPrecisionKernel kernel = select_low_precision_kernel();
  for (int variant = 0; variant < 6; ++variant) {
    Random random(1000 + variant + 10 * grad);
    const int64_t padded = (kElements + kBlockElements - 1) / kBlockElements * kBlockElements;
    Bytes p = tensor(format.param_dtype, random, false), m(padded * format.moment_item()), v(m.size());
    Bytes master(padded * format.master_item());
    if (format.master == MasterFormat::kFloat32) {
      for (int64_t i = 0; i < kElements; ++i) put(kFloat32, master, i, random.value(false));
    }
    std::vector<float> scales(2 * padded / kBlockElements);
    const StateBuffers state{m.data(), v.data(), scales.data(), scales.data() + padded / kBlockElements, master.data()};
    for (int step = 1; step <= kSteps; ++step) {
      const Bytes g = tensor(grad, random, false);
      kernel(p.data(), g.data(), grad, format, state, 0, 64, kElements, scalars(variant, step).data());
    }
    const Bytes scale_bytes(reinterpret_cast<char*>(scales.data()),
                            reinterpret_cast<char*>(scales.data() + scales.size()));
    uint64_t found = hash(hash(hash(0, p, format.param_dtype), m, kUnsupported), v, kUnsupported);
    found = hash(hash(found, master, kUnsupported), scale_bytes, kFloat32);
    std::printf("low_precision %d %d %d %d %d %d %016llx\n", format.param_dtype, grad, int(format.moments),
                int(format.master), int(format.stochastic), variant, (unsigned long long)found);
  }
}

void low_precision() {
  for (const int param : {kFloat32, kFloat16, kBFloat16}) {
    for (int moments = 0; moments < 4; ++moments) {
      for (int master = 0; master < 4; ++master) {
        for (const bool stochastic : {false, true}) {
          const StateFormat format{param, MomentFormat(moments), MasterFormat(master), stochastic};
          const bool half = param != kFloat32;
          if (format.is_full_precision() || (master > 0 && (!half || stochastic)) || (stochastic && !half)) continue;
          if (format.master == MasterFormat::kSplit && param != kBFloat16) continue;
          low_precision(format, param);
        }
      }
    }
  }
}

void grad_norm() {
  for (int dtype = 0; dtype < kUnsupported; ++dtype) {
    Random random(7 + dtype);
    GradNormLanes lanes{};
    const GradNormKernel kernel = select_grad_norm_kernel(dtype);
    for (int k = 0; k < 3; ++k) kernel.add(lanes, tensor(dtype, random, false).data(), kElements);
    kernel.finish_run(lanes, true);
    const double sum = kernel.reduce(lanes);
    uint64_t bits;
    std::memcpy(&bits, &sum, 8);
    std::printf("grad_norm %d %016llx\n", dtype, (unsigned long long)bits);
  }
}

}  // namespace

int main() {
  full_precision();
  low_precision();
  grad_norm();
}
