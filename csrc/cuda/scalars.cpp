// radam_fused::scalars_native on NVIDIA GPUs: one launch of one block, on the current stream. Nothing here waits for
// the device, and a captured graph refers to nothing but arguments and results.
#include "args/scalars_args.h"
#include "cuda/kernels.h"
#include "cuda/stream.h"

namespace radam_fused {
namespace {

void run(const ScalarsCall& call) {
  const CurrentStream current(call.device.index, "radam_fused::scalars_native");
  current.launched(launch_scalars(call.arguments, current.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) { m.impl("scalars_native", TORCH_BOX(&scalars_operator<run>)); }

}  // namespace radam_fused
