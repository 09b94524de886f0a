// radam_fused::step_native on NVIDIA GPUs: one launch a bucket and gradient dtype, on the current stream. Nothing here
// waits for the device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../launch.h"
#include "kernels.h"
#include "tables.h"

namespace radam_fused {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call of anybody's would report it once more
  STD_TORCH_CHECK(false, "radam_fused::step_native: ", what, " failed: ", cudaGetErrorName(status), " (",
                  cudaGetErrorString(status), "). This library holds code for the architectures ", architectures(),
                  ". An illegal access may be an earlier kernel's: CUDA_LAUNCH_BLOCKING=1 tells.");
}

// The segments of one gradient dtype, ready to go.
struct Prepared {
  int grad_dtype;
  size_t by_value;
  DeviceTables tables;
  LargeArguments arguments;
};

void prepare(const Launch& launch, int grad_dtype, const std::vector<unsigned char>& rows, int device,
             cudaStream_t stream, bool capturing, Prepared& ready) {
  LaunchBuilder builder(launch.exp_avg, launch.exp_avg_sq, item_size(moment_dtype(launch.param_dtype)));
  builder.reserve(launch.segments.size());
  for (const Segment& segment : launch.segments) {
    if (segment.grad_dtype == grad_dtype) builder.add(segment);
  }
  LargeArguments& arguments = ready.arguments;
  const ByValue passed = pass_by_value(rows, builder.grads, by_value_capacity(), arguments);
  const TableKey key{device, stream, launch.exp_avg, launch.param_dtype, grad_dtype, builder.grads.size()};
  ready.grad_dtype = grad_dtype;
  ready.by_value = passed.bytes;
  ready.tables = table_cache().find(key, builder.table, passed.rows ? nullptr : &rows,
                                    passed.grads ? nullptr : &builder.grads, capturing);
  const auto address = [](const Tensor& tensor) { return static_cast<const unsigned char*>(tensor.const_data_ptr()); };
  builder.table.point(address(ready.tables.segments), arguments);
  arguments.exp_avg = launch.exp_avg;
  arguments.exp_avg_sq = launch.exp_avg_sq;
  arguments.rows = passed.rows ? nullptr : address(ready.tables.rows);
  arguments.grads = passed.grads ? nullptr : address(ready.tables.grads);
}

void step(StableListHandle params, StableListHandle grads, Tensor exp_avg, Tensor exp_avg_sq, Tensor segments,
          Tensor row_of, Tensor rows) {
  const TensorList param_list(params);
  const TensorList grad_list(grads);
  const Launch launch = radam_fused::prepare(param_list, grad_list, exp_avg, exp_avg_sq, segments, row_of, rows);
  if (launch.segments.empty()) return;

  const int device = device_of(exp_avg.get()).index;
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
  const auto stream = static_cast<cudaStream_t>(current);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "asking whether a graph is captured");

  const std::vector<unsigned char> rounded = round_rows(launch.rows, launch.row_count, launch.param_dtype);
  const std::lock_guard<std::mutex> lock(table_cache().mutex);
  // Everything that can fail for want of memory comes before the first launch.
  const std::vector<int> dtypes = gradient_dtypes(launch.segments);
  std::vector<Prepared> ready(dtypes.size());
  for (size_t i = 0; i < dtypes.size(); ++i) {
    prepare(launch, dtypes[i], rounded, device, stream, capture == cudaStreamCaptureStatusActive, ready[i]);
  }
  for (const Prepared& one : ready) {
    check(launch_step(launch.param_dtype, one.grad_dtype, one.arguments, one.by_value, device, stream), "the launch");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) { m.impl("step_native", TORCH_BOX(&step)); }

}  // namespace radam_fused
