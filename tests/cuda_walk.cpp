// Runs the body of the CUDA kernel on the host, block by block and thread by thread: tests/cuda_host.py compiles this
// file and calls it through ctypes. Tables and walk are the ones that the GPU gets (csrc/table.h, csrc/tiles.h).
#include "table.h"

namespace radam_fused {
namespace {

// How the launch is made: none of it may change a bit, but for the thread that a negative control leaves out.
struct Geometry {
  int64_t blocks;
  int64_t threads;     // 32 or 128
  int64_t backwards;   // last block and last thread first
  int64_t in_tables;   // rows and gradients in tables, as when they are too many to go by value
  int64_t skipped;     // block * threads + thread, or -1
  int64_t only_block;  // or -1
};

template <int Threads, typename P, typename G, typename Arguments>
void run_threads(const Arguments& arguments, const Geometry& geometry) {
  const int64_t all = geometry.blocks * Threads;
  const int64_t begin = geometry.only_block < 0 ? 0 : geometry.only_block * Threads;
  const int64_t end = geometry.only_block < 0 ? all : begin + Threads;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t thread = geometry.backwards ? all - 1 - i : i;
    if (thread == geometry.skipped) continue;
    walk_tiles<Threads, P, G>(arguments,
                              Place{uint32_t(thread / Threads), uint32_t(geometry.blocks), uint32_t(thread % Threads)});
  }
}

template <typename P, typename G>
void run(const LargeArguments& arguments, const Geometry& geometry) {
  geometry.threads == 32 ? run_threads<32, P, G>(arguments, geometry) : run_threads<128, P, G>(arguments, geometry);
}

template <typename P>
void run_for(int grad_dtype, const LargeArguments& arguments, const Geometry& geometry) {
  grad_dtype == kFloat32   ? run<P, float>(arguments, geometry)
  : grad_dtype == kFloat16 ? run<P, float16>(arguments, geometry)
                           : run<P, bfloat16>(arguments, geometry);
}

void run(int param_dtype, int grad_dtype, const LargeArguments& arguments, const Geometry& geometry) {
  param_dtype == kFloat64   ? run<double, double>(arguments, geometry)
  : param_dtype == kFloat32 ? run_for<float>(grad_dtype, arguments, geometry)
  : param_dtype == kFloat16 ? run_for<float16>(grad_dtype, arguments, geometry)
                            : run_for<bfloat16>(grad_dtype, arguments, geometry);
}

}  // namespace
}  // namespace radam_fused

// A parameter and its gradient, as ctypes passes them.
struct HostTensor {
  void* param;
  const void* grad;
  int64_t start, row, grad_dtype, dim;
  const int64_t *size, *param_stride, *grad_stride;
};

extern "C" void radam_fused_walk(const HostTensor* tensors, int64_t count, int64_t param_dtype, void* exp_avg,
                                 void* exp_avg_sq, const double* rows, int64_t row_count,
                                 const radam_fused::Geometry* geometry) {
  using namespace radam_fused;
  std::vector<Segment> segments;
  std::vector<Strides> strides(count);
  for (int64_t i = 0; i < count; ++i) {
    const HostTensor& tensor = tensors[i];
    int64_t numel = 1;
    for (int64_t d = 0; d < tensor.dim; ++d) numel *= tensor.size[d];
    if (numel == 0) continue;
    const bool is_plain = plain({tensor.size, tensor.param_stride, tensor.dim},
                                {tensor.size, tensor.grad_stride, tensor.dim}, strides[i]);
    segments.push_back({tensor.param, tensor.grad, tensor.start, numel, tensor.row, int(tensor.grad_dtype),
                        is_plain ? nullptr : &strides[i]});
  }
  const std::vector<unsigned char> rounded = round_rows(rows, row_count, int(param_dtype));
  for (const int grad_dtype : gradient_dtypes(segments)) {
    LaunchBuilder builder(exp_avg, exp_avg_sq, item_size(moment_dtype(int(param_dtype))));
    for (const Segment& segment : segments) {
      if (segment.grad_dtype == grad_dtype) builder.add(segment);
    }
    std::vector<uint64_t> table(builder.table.bytes() / 8 + 8);  // as aligned as device memory would be
    auto* memory = reinterpret_cast<unsigned char*>((uintptr_t(table.data()) + 15) / 16 * 16);
    builder.table.write(memory);
    LargeArguments arguments{};
    builder.table.point(memory, arguments);
    arguments.exp_avg = exp_avg;
    arguments.exp_avg_sq = exp_avg_sq;
    const size_t capacity = geometry->in_tables ? 0 : LargeArguments::kCapacity;
    const ByValue passed = pass_by_value(rounded, builder.grads, capacity, arguments);
    if (!passed.rows) arguments.rows = rounded.data();
    if (!passed.grads) arguments.grads = reinterpret_cast<const unsigned char*>(builder.grads.data());
    run(int(param_dtype), grad_dtype, arguments, *geometry);
  }
}

// Where the element at a position lies in its parameter and its gradient, as `strides` describes them.
extern "C" void radam_fused_locate(const int64_t* strides, int64_t position, int64_t bits, int64_t* found) {
  using namespace radam_fused;
  const Offsets at = bits == 32 ? locate(strides, uint32_t(position)) : locate(strides, uint64_t(position));
  found[0] = at.param;
  found[1] = at.grad;
}
