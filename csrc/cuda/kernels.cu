// The kernel for every pair of dtypes, and how many blocks of it a launch gets.
#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "../dtypes.h"
#include "kernel.cuh"

namespace radam_fused {
namespace {

using Launcher = cudaError_t (*)(const LargeArguments&, int device, cudaStream_t);

constexpr int kMaxDevices = 64;

// RADAM_FUSED_CUDA_BLOCKS=n sets the size of every grid: for tests that all sizes give the same bits, and for tuning.
int blocks_asked_for() {
  static const char* value = std::getenv("RADAM_FUSED_CUDA_BLOCKS");
  return value != nullptr ? std::max(0, std::atoi(value)) : 0;
}

// As many blocks as the device holds at once: they stay, and walk the tiles among them. Asked once a kernel and device.
template <auto Kernel>
cudaError_t resident_blocks(int device, int& blocks) {
  static std::atomic<int> known[kMaxDevices];
  blocks = device < kMaxDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (blocks > 0) return cudaSuccess;
  int per_sm = 0, sms = 0;
  cudaError_t status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, Kernel, kThreads, 0);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  blocks = std::max(1, per_sm * sms);
  if (device < kMaxDevices) known[device].store(blocks, std::memory_order_relaxed);
  return cudaSuccess;
}

// LargeArguments begin as SmallArguments do, so a launch that needs the few reads them from the same place.
template <typename P, typename G, typename Arguments>
cudaError_t launch(const LargeArguments& arguments, int device, cudaStream_t stream) {
  constexpr auto kernel = step_kernel<P, G, Arguments>;
  int blocks = blocks_asked_for();
  if (blocks == 0) {
    const cudaError_t status = resident_blocks<kernel>(device, blocks);
    if (status != cudaSuccess) return status;
  }
  blocks = int(std::min<uint32_t>(blocks, arguments.tiles));
  void* parameters[] = {const_cast<LargeArguments*>(&arguments)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kThreads), parameters, 0, stream);
}

template <typename P, typename G>
Launcher pick(bool large) {
#if CUDART_VERSION >= 12010
  if (large) return launch<P, G, LargeArguments>;
#endif
  return large ? nullptr : launch<P, G, SmallArguments>;
}

template <typename P>
Launcher pick_for(int grad_dtype, bool large) {
  switch (grad_dtype) {
    case kFloat32:
      return pick<P, float>(large);
    case kFloat16:
      return pick<P, float16>(large);
    case kBFloat16:
      return pick<P, bfloat16>(large);
    default:
      return nullptr;
  }
}

Launcher pick(int param_dtype, int grad_dtype, bool large) {
  switch (param_dtype) {
    case kFloat32:
      return pick_for<float>(grad_dtype, large);
    case kFloat16:
      return pick_for<float16>(grad_dtype, large);
    case kBFloat16:
      return pick_for<bfloat16>(grad_dtype, large);
    case kFloat64:
      return grad_dtype == kFloat64 ? pick<double, double>(large) : nullptr;
    default:
      return nullptr;
  }
}

#define RADAM_TEXT(...) #__VA_ARGS__
#define RADAM_EXPANDED(...) RADAM_TEXT(__VA_ARGS__)

}  // namespace

size_t by_value_capacity() {
#if CUDART_VERSION >= 12010
  static const bool large = [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010;
  }();
  if (large) return LargeArguments::kCapacity;
#endif
  return SmallArguments::kCapacity;
}

cudaError_t launch_step(int param_dtype, int grad_dtype, const LargeArguments& arguments, size_t by_value, int device,
                        cudaStream_t stream) {
  const Launcher launcher = pick(param_dtype, grad_dtype, by_value > SmallArguments::kCapacity);
  return launcher != nullptr ? launcher(arguments, device, stream) : cudaErrorInvalidDeviceFunction;
}

const char* architectures() { return RADAM_EXPANDED(__CUDA_ARCH_LIST__); }

}  // namespace radam_fused
