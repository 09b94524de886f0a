// The kernel that makes rows: a single block, which can wait for all of itself (csrc/numerics/scalars_op.h).
#include "cuda/block.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_config.cuh"
#include "numerics/scalars_op.h"

namespace radam_fused {
namespace {

// All that a block can have; the 64 registers that this leaves a thread are enough for a row.
constexpr int kRowsThreads = 1024;

__global__ void __launch_bounds__(kRowsThreads) rows_kernel(const __grid_constant__ RowsArguments arguments) {
  __shared__ RowsShared shared;
  make_rows(arguments, shared, Block<kRowsThreads>{});
}

}  // namespace

cudaError_t launch_rows(const RowsArguments& arguments, cudaStream_t stream) {
  return start<rows_kernel>(arguments, 1, kRowsThreads, stream);
}

}  // namespace radam_fused
