// radam_fused::scalars_native on the CPU.
#include <torch/csrc/stable/library.h>

#include "args/scalars_args.h"

namespace radam_fused {
namespace {

void run(const ScalarsCall& call) {
  ScalarsShared shared;
  compute_all_scalars(call.arguments, shared, SingleThread{});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("scalars_native", TORCH_BOX(&scalars_operator<run>)); }

}  // namespace radam_fused
