// The arithmetic of low-precision state for eight consecutive elements of one thread. csrc/numerics/quantization.h has
// the functions for one element; here the format is tested once for all eight.
#pragma once

#include "cuda/memory_access.h"
#include "numerics/philox.h"
#include "numerics/quantization.h"
#include "numerics/radam_update.h"
#include "numerics/state_format.h"

namespace radam_fused {

static_assert(kVec == kRandsPerCall, "a Philox call has a random number for each element of a thread");

// The stored elements, as a thread has loaded them.
struct Elements {
  Packed p, g, m, v, master;
  float scale, sq_scale;  // of 8-bit moments
};

// The elements in float32. v is the square root of the second moment from where that is encoded.
struct Values {
  float x[kVec];
  float m[kVec];
  float v[kVec];
  uint32_t largest;  // a magnitude, as bits
};

constexpr int kWarp = 32;  // lanes
static_assert(kWarp * kVec == kBlockElements, "a warp covers a block");

// The state of a lane between phases.
struct Lane {
  Values values;
  Philox random;
};

template <typename P>
RADAM_HD void read_as(float* x, const Elements& in, MasterFormat format) {
  if (format == MasterFormat::kFloat32) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) x[i] = from_master(in.p.value<P>(i), in.master.value<float>(i));
    return;
  }
  widen_all<P>(x, in.p);
  if (format != MasterFormat::kKahan) return;
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) x[i] = x[i] + widen(in.master.value<P>(i));
}

RADAM_HD void read_parameter(float* x, const Elements& in, const StateFormat& format) {
  if (format.master == MasterFormat::kSplit) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) x[i] = join(in.p.value<bfloat16>(i), in.master.value<int16_t>(i));
  } else if (format.param_dtype == kBFloat16) {
    read_as<bfloat16>(x, in, format.master);
  } else if (format.param_dtype == kFloat16) {
    read_as<float16>(x, in, format.master);
  } else {
    widen_all<float>(x, in.p);
  }
}

template <MomentFormat kMoments>
RADAM_HD void read_moments(Values& values, const Elements& in) {
  if constexpr (kMoments == MomentFormat::kInt8) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      const float octaves = RootCode::octaves(in.v.value<uint8_t>(i));
      const float root = RootCode::decode(octaves, in.sq_scale);
      values.m[i] = FirstCode::decode(in.m.value<int8_t>(i), in.scale, octaves);
      values.v[i] = root * root;
    }
  } else if constexpr (kMoments == MomentFormat::kFloat16) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      const float root = HalfRoot::decode(in.v.value<float16>(i));
      values.m[i] = HalfFirst::decode(in.m.value<float16>(i), root);
      values.v[i] = root * root;
    }
  } else {
    widen_all<MomentOf<kMoments>>(values.m, in.m);
    widen_all<MomentOf<kMoments>>(values.v, in.v);
  }
}

// The update. For MasterFormat::kKahan, x becomes what is to be subtracted from the parameter.
RADAM_HD void step_all(Values& values, const float* g, const StepScalars<float>& scalars, MasterFormat format) {
  const bool compensated = format == MasterFormat::kKahan;
  const UpdateBranches branches = UpdateBranches::of(scalars);
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    float& x = values.x[i];
    const float d = update_moments(x, g[i], values.m[i], values.v[i], scalars, branches);
    const float taken = decrease(x, d, scalars, branches);
    const float stepped = compensated ? taken : x - taken;
    x = scalars.update_rule == UpdateRule::kNoParamUpdate ? x : stepped;
  }
}

template <typename P>
RADAM_HD void compensate_all(Elements& elements, const float* decrease) {
  Packed after, rest;
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    float p = widen(elements.p.value<P>(i)), compensation = widen(elements.master.value<P>(i));
    compensate<P>(p, compensation, decrease[i]);
    after.set(i, Narrow<P>::from(p));
    rest.set(i, Narrow<P>::from(compensation));
  }
  elements.p = after;
  elements.master = rest;
}

// `random` is used if parameters are rounded stochastically.
template <typename P>
RADAM_HD void write_as(Elements& out, const float* x, const StateFormat& format, const Philox& random) {
  if (format.master == MasterFormat::kKahan) {
    compensate_all<P>(out, x);
  } else if (format.master == MasterFormat::kFloat32) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      out.p.set(i, Parameter<P>::from(x[i]));
      out.master.set(i, x[i]);
    }
  } else if (format.stochastic) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) out.p.set(i, Stochastic<P>::from(x[i], random.rand16(i)));
  } else {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) out.p.set(i, Narrow<P>::from(x[i]));
  }
}

RADAM_HD void write_parameter(Elements& out, const float* x, const StateFormat& format, UpdateRule rule,
                              const Philox& random) {
  if (rule == UpdateRule::kNoParamUpdate) {
    // The parameter stays as it is, bit for bit; a master copy takes over what user code has written to it.
    if (format.master == MasterFormat::kFloat32) {
      RADAM_UNROLL
      for (int i = 0; i < kVec; ++i) out.master.set(i, x[i]);
    }
  } else if (format.master == MasterFormat::kSplit) {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      out.p.set(i, Parameter<bfloat16>::from(x[i]));
      out.master.set(i, low_bits(x[i]));
    }
  } else if (format.param_dtype == kBFloat16) {
    write_as<bfloat16>(out, x, format, random);
  } else if (format.param_dtype == kFloat16) {
    write_as<float16>(out, x, format, random);
  } else {
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) out.p.set(i, x[i]);
  }
}

RADAM_HD void take_roots(Values& values) {
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) values.v[i] = square_root(values.v[i]);
}

template <MomentFormat kMoments>
RADAM_HD void narrow_moments(Elements& out, Values& values, const Philox& random) {
  if constexpr (kMoments == MomentFormat::kFloat16) {
    take_roots(values);
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      const float16 fourth = HalfRoot::encode(values.v[i], random.rand16(i));
      out.m.set(i, HalfFirst::encode(values.m[i], HalfRoot::decode(fourth), swap_bytes(random.rand16(i))));
      out.v.set(i, fourth);
    }
  } else {
    using S = MomentOf<kMoments>;
    RADAM_UNROLL
    for (int i = 0; i < kVec; ++i) {
      out.m.set(i, Stochastic<S>::from(values.m[i], swap_bytes(random.rand16(i))));
      out.v.set(i, Stochastic<S>::from(values.v[i], random.rand16(i)));
    }
  }
}

// The largest magnitude of the first `count` elements, as bits.
RADAM_HD uint32_t largest_of(const float* values, int count) {
  uint32_t largest = 0;
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    const uint32_t magnitude = i < count ? magnitude_bits(values[i]) : 0;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// Encodes the square roots of the second moment; replaces the first moment by its quotient (FirstCode).
RADAM_HD Packed encode_roots(Values& values, const BlockScale& scale, const Philox& random) {
  Packed codes;
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    const uint32_t code = code_of(RootCode::encode(values.v[i], scale.factor, random.rand16(i))) & scale.codes;
    values.m[i] = FirstCode::quotient(values.m[i], RootCode::octaves(code));
    codes.set(i, uint8_t(code));
  }
  return codes;
}

RADAM_HD Packed encode_quotients(const Values& values, const BlockScale& scale, const Philox& random) {
  Packed codes;
  RADAM_UNROLL
  for (int i = 0; i < kVec; ++i) {
    const uint32_t rand16 = swap_bytes(random.rand16(i));
    codes.set(i, uint8_t(code_of(FirstCode::encode(values.m[i], scale.factor, rand16)) & scale.codes));
  }
  return codes;
}

}  // namespace radam_fused
