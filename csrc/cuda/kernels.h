// Launching the kernel, for a caller that no CUDA compiler sees.
#pragma once

#include <cuda_runtime_api.h>

#include "../tiles.h"

namespace radam_fused {

// How many bytes of rows and gradient addresses go by value: what the CUDA here, the compiler's and the driver's,
// allows.
size_t by_value_capacity();

// Starts one step on the current device, which must be `device`. Of `arguments.by_value` the first `by_value` bytes
// count.
cudaError_t launch_step(int param_dtype, int grad_dtype, const LargeArguments& arguments, size_t by_value, int device,
                        cudaStream_t stream);

// The GPU architectures that this library holds machine code for, as in "800,900".
const char* architectures();

}  // namespace radam_fused
