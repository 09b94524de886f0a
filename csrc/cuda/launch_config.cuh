// The number of blocks of a launch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "cuda/launch_args.h"

namespace radam_fused {

constexpr int kMaxDevices = 64;

// RADAM_FUSED_CUDA_BLOCKS=n sets the size of every grid, for tests that compare the bits of several sizes, and for
// tuning.
inline int blocks_asked_for() {
  static const char* value = std::getenv("RADAM_FUSED_CUDA_BLOCKS");
  return value != nullptr ? std::max(0, std::atoi(value)) : 0;
}

// As many blocks of kThreads as the device holds at once, but not more than there is work for: the kernels are
// persistent. The device is queried once per kernel.
template <auto Kernel>
cudaError_t blocks_for(int device, uint32_t work, int& blocks) {
  static std::atomic<int> blocks_of_device[kMaxDevices];
  blocks = blocks_asked_for();
  if (blocks == 0 && device < kMaxDevices) blocks = blocks_of_device[device].load(std::memory_order_relaxed);
  if (blocks == 0) {
    int per_sm = 0, sms = 0;
    cudaError_t status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, Kernel, kThreads, 0);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;
    blocks = std::max(1, per_sm * sms);
    if (device < kMaxDevices) blocks_of_device[device].store(blocks, std::memory_order_relaxed);
  }
  blocks = int(std::min<uint32_t>(blocks, work));
  return cudaSuccess;
}

// Launches a kernel with this argument.
template <auto Kernel, typename Arguments>
cudaError_t start(const Arguments& arguments, int blocks, int threads, cudaStream_t stream) {
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(Kernel), dim3(blocks), dim3(threads), parameters, 0, stream);
}

}  // namespace radam_fused
