// radam_fused::rows_native on the CPU.
#include <torch/csrc/stable/library.h>

#include "args/scalars_args.h"

namespace radam_fused {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> rows(Tensor hyper, Tensor pairs, Tensor counted, Tensor steps, Tensor taken,
                                std::optional<Tensor> lr, std::optional<Tensor> squares, double max_grad_norm,
                                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  const RowTable table =
      prepare_rows(hyper, pairs, counted, steps, taken, lr, squares, max_grad_norm, grad_scale, found_inf);
  RowsShared shared;
  make_rows(table.arguments, shared, Solo{});
  return {table.rows, table.norm};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("rows_native", TORCH_BOX(&rows)); }

}  // namespace radam_fused
