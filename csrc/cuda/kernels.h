// Functions that launch the kernels, for C++ files that nvcc does not compile.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/launch_args.h"
#include "cuda/low_precision_args.h"
#include "numerics/scalars_op.h"

namespace radam_fused {

using SmallStep = Small<StepTables>;
using LargeStep = Large<StepTables>;
using LowPrecisionStep = Small<LowPrecisionTables>;
using SmallGradNorm = Small<GradNormTables>;
using LargeGradNorm = Large<GradNormTables>;

// Whether both the CUDA compiler and the driver support kernel arguments of 32 KB.
bool allows_large_arguments();

// How many bytes of scalars and gradient addresses can be passed by value.
template <typename Tables>
size_t by_value_capacity() {
  return allows_large_arguments() ? Large<Tables>::kCapacity : Small<Tables>::kCapacity;
}

// Each launches one kernel on the current device, which must be `device`. `by_value`: how many bytes of
// arguments.by_value are used.
cudaError_t launch_step(int param_dtype, int grad_dtype, const LargeStep& arguments, size_t by_value, int device,
                        cudaStream_t stream);
cudaError_t launch_low_precision(const LowPrecisionStep& arguments, int device, cudaStream_t stream);
cudaError_t launch_grad_norm(int dtype, const LargeGradNorm& arguments, size_t by_value, int device,
                             cudaStream_t stream);
cudaError_t launch_scalars(const ScalarsKernelArgs& arguments, cudaStream_t stream);

}  // namespace radam_fused
