// The partial sums of squares on the CPU.
#pragma once

#include "args/grad_norm_args.h"

namespace radam_fused {

// Writes the kPartialSums sums of checked gradients, on all of torch's threads.
void run_grad_norm(const GradNormArgs& grads, double* sums);

}  // namespace radam_fused
