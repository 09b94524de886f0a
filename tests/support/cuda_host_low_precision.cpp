// Runs the body of the CUDA kernels over low-precision state on the host, warp by warp and lane by lane: see
// cuda_host_step.cpp.
#include "cuda_host.h"

namespace radam_fused {
namespace {

template <int Warps, MomentFormat kMoments>
void run_warps(const Small<LowPrecisionTables>& arguments, const Geometry& geometry) {
  const int64_t all = geometry.blocks * Warps;
  for (int64_t i = 0; i < all; ++i) {
    const int64_t warp = geometry.backwards ? all - 1 - i : i;
    step_low_precision_tiles<kMoments, Warps>(
        arguments, ThreadIndex{uint32_t(warp / Warps), uint32_t(geometry.blocks), uint32_t(warp % Warps)},
        WarpInTurn{&geometry, warp * kWarp});
  }
}

template <MomentFormat kMoments>
void run(const Small<LowPrecisionTables>& arguments, const Geometry& geometry) {
  geometry.threads == 32 ? run_warps<1, kMoments>(arguments, geometry) : run_warps<4, kMoments>(arguments, geometry);
}

}  // namespace

void run_low_precision(const Small<LowPrecisionTables>& arguments, const Geometry& geometry) {
  dispatch_moments(arguments.format.moments, [&](auto moments) { run<moments()>(arguments, geometry); });
}

}  // namespace radam_fused
