// The device of an operator's tensors and its current stream.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/architectures.h"

namespace radam_fused {

inline void check(cudaError_t status, const char* op, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which the next CUDA call of any code would report again
  STD_TORCH_CHECK(false, op, ": ", what, " failed: ", cudaGetErrorName(status), " (", cudaGetErrorString(status),
                  "). This library holds code for the architectures ", architectures(),
                  ". An illegal access may be an earlier kernel's: CUDA_LAUNCH_BLOCKING=1 shows whose it is.");
}

// Makes the device the current one for as long as it lives.
class CurrentStream {
 public:
  CurrentStream(int device, const char* op) : device(device), op_(op), guard_(device) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    launched(cudaStreamIsCapturing(stream, &status), "asking whether a graph is captured");
    capturing = status == cudaStreamCaptureStatusActive;
  }

  // Raises an error in the operator's name if a CUDA call has failed.
  void launched(cudaError_t status, const char* what = "the launch") const { check(status, op_, what); }

  int device;
  cudaStream_t stream = nullptr;
  bool capturing = false;

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace radam_fused
