// radam_fused::rows_native on NVIDIA GPUs: one launch of one block, on the current stream. Nothing here waits for the
// device, and what a graph captures refers to nothing but the arguments and results.
#include "args/scalars_args.h"
#include "cuda/kernels.h"
#include "cuda/stream.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> scalars(Tensor group_scalars, Tensor pairs, Tensor counted, Tensor steps, Tensor taken,
                                   std::optional<Tensor> lr, std::optional<Tensor> partial_sums, double max_grad_norm,
                                   std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  const ScalarsCall table = check_scalars_args(group_scalars, pairs, counted, steps, taken, lr, partial_sums,
                                               max_grad_norm, grad_scale, found_inf);
  const CurrentStream current(table.device.index, "radam_fused::rows_native");
  current.launched(launch_scalars(table.arguments, current.stream));
  return {table.scalars, table.norm};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) { m.impl("rows_native", TORCH_BOX(&scalars)); }

}  // namespace radam_fused
