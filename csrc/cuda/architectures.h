// The GPU architectures that this library has machine code for.
#pragma once

namespace radam_fused {

// As in "800,900"; defined in step_kernel.cu, which nvcc compiles.
const char* architectures();

}  // namespace radam_fused
