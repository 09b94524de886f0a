// radam_fused::grad_norm_native on the CPU: the partial sums, computed by torch's threads.
#include "cpu/grad_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>

#include "cpu/grad_norm_kernel.h"
#include "cpu/strided_copy.h"
#include "numerics/grad_norm_order.h"

namespace radam_fused {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Below this number of tiles another thread does not pay (about 30 us of work at 10 GB/s).
constexpr int64_t kTilesPerThread = 64;

// Adds the tiles from `begin` up to `end` of one gradient.
void add_gradient(const GradNormKernel& kernel, const Segment& grad, GradNormLanes& lanes, int64_t begin, int64_t end) {
  const int64_t item = item_size(grad.grad_dtype);
  const int64_t first = begin * kTile, last = std::min(end * kTile, grad.numel);
  if (grad.strides == nullptr) {
    kernel.add(lanes, static_cast<const char*>(grad.grad) + first * item, last - first);
    return;
  }
  alignas(64) char tile[kTile * 8];
  for (int64_t at = first; at < last; at += kTile) {
    const int64_t n = std::min<int64_t>(kTile, last - at);
    load_strided(grad.grad_dtype, tile, grad.grad, *grad.strides, at, n, /*is_grad=*/true);
    kernel.add(lanes, tile, n);
  }
}

// The partial sums from `begin` up to `end`. The tiles of gradient i end at ends[i], counted over all gradients.
void add_range(const GradNormArgs& grads, const std::vector<int64_t>& ends, double* sums, int64_t begin, int64_t end) {
  const GradNormKernel kernel = select_grad_norm_kernel(grads.dtype);
  const int64_t tiles = ends.empty() ? 0 : ends.back();
  int64_t tile = first_tile_of(begin, tiles);
  auto index = size_t(std::upper_bound(ends.begin(), ends.end(), tile) - ends.begin());
  GradNormLanes lanes;
  std::memset(lanes.run, 0, sizeof(lanes.run));
  for (int64_t sum = begin; sum < end; ++sum) {
    const int64_t last = first_tile_of(sum + 1, tiles);
    sums[sum] = 0.0;
    if (tile == last) continue;
    bool first_run = true;
    int64_t run_ends = tile + kernel.run_tiles;
    while (tile < last) {
      const int64_t first = index > 0 ? ends[index - 1] : 0;
      const int64_t until = std::min({last, ends[index], run_ends});
      add_gradient(kernel, grads.segments[index], lanes, tile - first, until - first);
      tile = until;
      if (tile == ends[index]) ++index;
      if (tile == run_ends || tile == last) {
        kernel.finish_run(lanes, first_run);
        first_run = false;
        run_ends += kernel.run_tiles;
      }
    }
    sums[sum] = kernel.reduce(lanes);
  }
}

Tensor grad_norm(StableListHandle list) {
  const TensorList grads(list);
  const GradNormArgs args = read_grad_norm_args(grads);
  const int64_t shape[] = {1, kPartialSums};
  Tensor sums =
      torch::stable::empty({shape, 2}, ScalarType::Double, std::nullopt, torch::stable::Device(DeviceType::CPU));
  run_grad_norm(args, static_cast<double*>(sums.mutable_data_ptr()));
  return sums;
}

}  // namespace

void run_grad_norm(const GradNormArgs& grads, double* sums) {
  Scratch<int64_t> ends;
  ends.reserve(grads.segments.size());
  int64_t tiles = 0;
  for (const Segment& grad : grads.segments) ends.push_back(tiles += (grad.numel + kTile - 1) / kTile);
  const int64_t grain = std::max<int64_t>(1, kTilesPerThread * kPartialSums / std::max<int64_t>(1, tiles));
  torch::stable::parallel_for(0, kPartialSums, grain,
                              [&](int64_t begin, int64_t end) { add_range(grads, ends, sums, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CPU, m) { m.impl("grad_norm_native", TORCH_BOX(&grad_norm)); }

}  // namespace radam_fused
