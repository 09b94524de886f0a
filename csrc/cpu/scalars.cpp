// radam_fused::rows_native on the CPU.
#include <torch/csrc/stable/library.h>

#include "args/scalars_args.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> scalars(Tensor group_scalars, Tensor pairs, Tensor counted, Tensor steps, Tensor taken,
                                   std::optional<Tensor> lr, std::optional<Tensor> partial_sums, double max_grad_norm,
                                   std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  const ScalarsCall table = check_scalars_args(group_scalars, pairs, counted, steps, taken, lr, partial_sums,
                                               max_grad_norm, grad_scale, found_inf);
  ScalarsShared shared;
  compute_all_scalars(table.arguments, shared, SingleThread{});
  return {table.scalars, table.norm};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("rows_native", TORCH_BOX(&scalars)); }

}  // namespace radam_fused
