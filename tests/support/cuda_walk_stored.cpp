// Runs the body of the CUDA kernels over stored forms on the host, warp by warp and lane by lane: see cuda_walk.cpp.
#include "cuda_walk.h"

namespace radam_fused {
namespace {

template <int Warps, Moments kMoments>
void run_warps(const Small<StoredTables>& arguments, const Geometry& geometry) {
  const int64_t all = geometry.blocks * Warps;
  for (int64_t i = 0; i < all; ++i) {
    const int64_t warp = geometry.backwards ? all - 1 - i : i;
    walk_stored<kMoments, Warps>(arguments,
                                 Place{uint32_t(warp / Warps), uint32_t(geometry.blocks), uint32_t(warp % Warps)},
                                 WarpInTurn{&geometry, warp * kWarp});
  }
}

template <Moments kMoments>
void run(const Small<StoredTables>& arguments, const Geometry& geometry) {
  geometry.threads == 32 ? run_warps<1, kMoments>(arguments, geometry) : run_warps<4, kMoments>(arguments, geometry);
}

}  // namespace

void run_stored(const Small<StoredTables>& arguments, const Geometry& geometry) {
  switch (arguments.forms.moments) {
    case Moments::kFloat32:
      return run<Moments::kFloat32>(arguments, geometry);
    case Moments::kBFloat16:
      return run<Moments::kBFloat16>(arguments, geometry);
    case Moments::kFloat16:
      return run<Moments::kFloat16>(arguments, geometry);
    case Moments::kInt8:
      return run<Moments::kInt8>(arguments, geometry);
  }
}

}  // namespace radam_fused
