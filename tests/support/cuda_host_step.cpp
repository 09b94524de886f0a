// Runs the body of the CUDA kernel on the host, block by block and thread by thread: tests/support/cuda_host.py
// compiles this file and calls it through ctypes. Tables and tile loop are the ones that the GPU gets
// (csrc/cuda/launch_table.h, csrc/cuda/full_precision_tile_loop.h).
#include "cuda/full_precision_tile_loop.h"
#include "cuda_host.h"

namespace radam_fused {
namespace {

using LargeStep = Large<StepTables>;

template <int Threads, typename P, typename G, typename Arguments>
void run_threads(const Arguments& arguments, const Geometry& geometry) {
  const int64_t all = geometry.blocks * Threads;
  const int64_t begin = geometry.only_block < 0 ? 0 : geometry.only_block * Threads;
  const int64_t end = geometry.only_block < 0 ? all : begin + Threads;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t thread = geometry.backwards ? all - 1 - i : i;
    if (thread == geometry.skipped) continue;
    step_tiles<Threads, P, G>(
        arguments, ThreadIndex{uint32_t(thread / Threads), uint32_t(geometry.blocks), uint32_t(thread % Threads)});
  }
}

template <typename P, typename G>
void run(const LargeStep& arguments, const Geometry& geometry) {
  geometry.threads == 32 ? run_threads<32, P, G>(arguments, geometry) : run_threads<128, P, G>(arguments, geometry);
}

void run(int param_dtype, int grad_dtype, const LargeStep& arguments, const Geometry& geometry) {
  dispatch_dtypes(param_dtype, grad_dtype, false, [&](auto p, auto g) {
    run<decltype(p), decltype(g)>(arguments, geometry);
    return true;
  });
}

}  // namespace
}  // namespace radam_fused

extern "C" void radam_fused_step(const HostTensor* tensors, int64_t count, const radam_fused::HostState* state,
                                 const double* scalars, int64_t scalar_count, int64_t zero_grads,
                                 const radam_fused::Geometry* geometry) {
  using namespace radam_fused;
  std::vector<Segment> segments;
  std::vector<Strides> strides(count);
  for (int64_t i = 0; i < count; ++i) {
    const HostTensor& tensor = tensors[i];
    if (tensor.numel() == 0) continue;
    const Shape grad{tensor.size, tensor.grad_stride, tensor.dim};
    const bool strided = needs_strides({tensor.size, tensor.param_stride, tensor.dim}, grad, strides[i]);
    segments.push_back({tensor.param, tensor.grad, tensor.start, tensor.numel(), tensor.scalar_index,
                        int(tensor.grad_dtype), strided ? &strides[i] : nullptr, overlaps_itself(grad),
                        tensor.rng_offset});
  }
  const StateFormat format = state->format();
  const std::vector<unsigned char> rounded = round_scalars(scalars, scalar_count, format.param_dtype);
  const HostLaunch launch{format, state->buffers, scalars, rounded, zero_grads != 0, *geometry};
  for (const int grad_dtype : gradient_dtypes(segments)) {
    if (format.is_full_precision()) {
      launch.start<LargeStep>(segments, grad_dtype, [&](const LargeStep& arguments) {
        run(format.param_dtype, grad_dtype, arguments, *geometry);
      });
    } else {
      launch.start<Small<LowPrecisionTables>>(segments, grad_dtype, [&](const Small<LowPrecisionTables>& arguments) {
        run_low_precision(arguments, *geometry);
      });
    }
  }
}

// Where the element at a position is in its parameter and its gradient, as `strides` describes them.
extern "C" void radam_fused_locate(const int64_t* strides, int64_t position, int64_t bits, int64_t* found) {
  using namespace radam_fused;
  const Offsets at = bits == 32 ? locate(strides, uint32_t(position)) : locate(strides, uint64_t(position));
  found[0] = at.param;
  found[1] = at.grad;
}
