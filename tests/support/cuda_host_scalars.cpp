// Runs the bodies of the kernels that add squares and make rows on the host, part by part and thread by thread: see
// cuda_host_step.cpp.
#include "cuda_host.h"
#include "numerics/scalars_op.h"

namespace radam_fused {
namespace {

template <typename G>
void add(const Large<GradNormTables>& arguments, const Geometry& geometry) {
  double shared[kLanes];
  for (int64_t i = 0; i < geometry.blocks; ++i) {
    const int64_t block = geometry.backwards ? geometry.blocks - 1 - i : i;
    sum_grad_norm<G>(arguments, uint32_t(block), uint32_t(geometry.blocks), shared, InTurn<kThreads>{geometry, block});
  }
}

}  // namespace
}  // namespace radam_fused

extern "C" void radam_fused_grad_norm(const HostTensor* tensors, int64_t count, int64_t dtype, double* sums,
                                      const radam_fused::Geometry* geometry) {
  using namespace radam_fused;
  std::vector<Strides> strides(count);
  LaunchBuilder builder({});
  for (int64_t i = 0; i < count; ++i) {
    const HostTensor& tensor = tensors[i];
    if (tensor.numel() == 0) continue;
    Segment segment{};
    segment.grad = tensor.grad;
    segment.numel = tensor.numel();
    if (needs_strides({tensor.size, tensor.grad_stride, tensor.dim}, strides[i])) segment.strides = &strides[i];
    builder.add(segment);
  }
  Large<GradNormTables> arguments{};
  const PlacedTable table(builder.table, arguments);
  arguments.sums = sums;
  const size_t capacity = geometry->in_tables ? 0 : Large<GradNormTables>::kCapacity;
  if (!pass_by_value({}, builder.grads, capacity, arguments).grads) {
    arguments.grads = reinterpret_cast<const unsigned char*>(builder.grads.data());
  }
  dispatch_dtype(int(dtype), false, [&](auto g) {
    add<decltype(g)>(arguments, *geometry);
    return true;
  });
}

extern "C" void radam_fused_scalars(const radam_fused::ScalarsKernelArgs* arguments,
                                    const radam_fused::Geometry* geometry) {
  using namespace radam_fused;
  ScalarsShared shared;
  if (geometry->threads == 32) {
    compute_all_scalars(*arguments, shared, InTurn<32>{*geometry, 0});
  } else {
    compute_all_scalars(*arguments, shared, InTurn<1024>{*geometry, 0});
  }
}
