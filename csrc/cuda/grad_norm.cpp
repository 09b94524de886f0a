// radam_fused::grad_norm_native on NVIDIA GPUs: one launch, on the current stream. Nothing here waits for the device.
#include "args/grad_norm_args.h"
#include "cuda/kernels.h"
#include "cuda/launch_table.h"
#include "cuda/stream.h"
#include "cuda/table_cache.h"
#include "numerics/grad_norm_order.h"

#include <torch/csrc/stable/ops.h>

namespace radam_fused {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

Tensor add_up(const GradNormArgs& grads) {
  LaunchBuilder builder({});
  builder.reserve(grads.segments.size());
  for (const Segment& grad : grads.segments) builder.add(grad);

  const CurrentStream current(grads.device.index, "radam_fused::grad_norm_native");
  const int64_t shape[] = {1, kPartialSums};
  Tensor sums = torch::stable::empty({shape, 2}, ScalarType::Double, std::nullopt,
                                     torch::stable::Device(DeviceType::CUDA, grads.device.index));
  LargeGradNorm arguments{};
  arguments.sums = static_cast<double*>(sums.mutable_data_ptr());
  const ByValue passed = pass_by_value({}, builder.grads, by_value_capacity<GradNormTables>(), arguments);
  const std::lock_guard<std::mutex> lock(table_cache().mutex);
  DeviceTables tables;
  if (builder.table.tiles > 0) {
    const TableKey key{current.device, current.stream, nullptr, kUnsupported, grads.dtype, builder.grads.size()};
    tables =
        table_cache().find(key, builder.table, nullptr, passed.grads ? nullptr : &builder.grads, current.capturing);
    builder.table.point(tables.segments.const_data_ptr(), arguments);
    if (!passed.grads) arguments.grads = static_cast<const unsigned char*>(tables.grads.const_data_ptr());
  }
  current.launched(launch_grad_norm(grads.dtype, arguments, passed.bytes, current.device, current.stream));
  return sums;
}

Tensor grad_norm(StableListHandle list) {
  const TensorList grads(list);
  return add_up(read_grad_norm_args(grads));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) { m.impl("grad_norm_native", TORCH_BOX(&grad_norm)); }

}  // namespace radam_fused
