// The kernels of a step with full-precision state, for every pair of dtypes.
#include "cuda/architectures.h"
#include "cuda/kernels.h"
#include "cuda/launch_config.cuh"
#include "cuda/step_kernel.cuh"
#include "numerics/dtypes.h"

namespace radam_fused {
namespace {

using Launcher = cudaError_t (*)(const LargeStep&, int device, cudaStream_t);

// LargeStep begins like SmallStep, so a kernel that takes the latter can be launched with either.
template <typename P, typename G, typename Arguments>
cudaError_t launch(const LargeStep& arguments, int device, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t status = blocks_for<step_kernel<P, G, Arguments>>(device, arguments.tiles, blocks);
  return status != cudaSuccess ? status : start<step_kernel<P, G, Arguments>>(arguments, blocks, kThreads, stream);
}

template <typename P, typename G>
Launcher pick(bool large) {
#if CUDART_VERSION >= 12010
  if (large) return launch<P, G, LargeStep>;
#endif
  return large ? nullptr : launch<P, G, SmallStep>;
}

Launcher pick(int param_dtype, int grad_dtype, bool large) {
  return dispatch_dtypes(param_dtype, grad_dtype, Launcher{nullptr},
                         [large](auto p, auto g) { return pick<decltype(p), decltype(g)>(large); });
}

#define RADAM_TEXT(...) #__VA_ARGS__
#define RADAM_EXPANDED(...) RADAM_TEXT(__VA_ARGS__)

}  // namespace

bool allows_large_arguments() {
#if CUDART_VERSION >= 12010
  static const bool allowed = [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010;
  }();
  return allowed;
#else
  return false;
#endif
}

cudaError_t launch_step(int param_dtype, int grad_dtype, const LargeStep& arguments, size_t by_value, int device,
                        cudaStream_t stream) {
  const Launcher launcher = pick(param_dtype, grad_dtype, by_value > SmallStep::kCapacity);
  return launcher != nullptr ? launcher(arguments, device, stream) : cudaErrorInvalidDeviceFunction;
}

const char* architectures() { return RADAM_EXPANDED(__CUDA_ARCH_LIST__); }

}  // namespace radam_fused
