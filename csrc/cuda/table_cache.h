// Tables in device memory, kept from step to step: uploading an unchanged table would cost more than the launch.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <list>
#include <mutex>

#include "cuda/segment_table.h"

namespace radam_fused {

using torch::stable::Tensor;

// Launches with equal keys share tables: those over one bucket, on one stream, with the same number of segments. A
// grad_norm launch has no moments, so its buckets have equal keys; the tables themselves are compared as well.
struct TableKey {
  int device;
  cudaStream_t stream;
  const void* exp_avg;
  int param_dtype;
  int grad_dtype;
  size_t segments;

  bool operator==(const TableKey& other) const {
    return device == other.device && stream == other.stream && exp_avg == other.exp_avg &&
           param_dtype == other.param_dtype && grad_dtype == other.grad_dtype && segments == other.segments;
  }
};

// The tables of a launch in device memory. They are never written again: a changed table gets new memory, and torch's
// allocator reuses the old in the order of the stream that has read it.
struct DeviceTables {
  Tensor segments;
  Tensor scalars;  // undefined if passed by value
  Tensor grads;    // likewise
};

// The tables of the most recent launches. What a captured CUDA graph refers to is kept permanently, as no event reports
// the graph's destruction: a few bytes per tensor of the model and capture.
class TableCache {
 public:
  // To be held from `find` until the launch is on its stream, so that no other thread drops the tables in between.
  std::mutex mutex;

  // The tables for a launch on the current device and stream. `scalars` and `grads` are null if they are passed by
  // value.
  DeviceTables find(const TableKey& key, const SegmentTable& table, const std::vector<double>* scalars,
                    const std::vector<const void*>* grads, bool capturing);

  // Keeps a tensor that a captured graph refers to.
  void keep(const Tensor& tensor) { kept_.push_back(tensor); }

 private:
  struct Entry {
    TableKey key;
    SegmentTable table;
    std::vector<const void*> grads;
    DeviceTables on_device;
  };

  Tensor upload(int device, size_t bytes, const std::function<void(unsigned char*)>& write, bool capturing);

  static constexpr size_t kEntries = 1024;  // one per bucket; with step_in_backward, one per parameter

  std::list<Entry> entries_;  // the most recent first
  std::vector<Tensor> kept_;
};

// Never destroyed: at the end of the process the CUDA runtime may be destroyed first.
TableCache& table_cache();

}  // namespace radam_fused
