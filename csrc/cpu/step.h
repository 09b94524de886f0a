// The step on the CPU.
#pragma once

#include "args/step_args.h"

namespace radam_fused {

// Performs a checked step, on all of torch's threads.
void run_step(const Launch& launch, bool zero_grads);

}  // namespace radam_fused
