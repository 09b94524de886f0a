// Tables in device memory, kept from step to step: uploading what has not changed would cost more than the launch.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <list>
#include <mutex>

#include "cuda/segment_table.h"

namespace radam_fused {

using torch::stable::Tensor;

// Which launches share tables: those over one bucket, on one stream, with as many segments. Where only gradients are
// read there are no moments to tell buckets apart; their lengths do, as the tables are compared.
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

// What a launch finds in device memory. Nothing is ever written to it again: a table that has changed gets new memory,
// and the old goes back to torch's allocator, which hands it out again in the order of the stream that has used it.
struct DeviceTables {
  Tensor segments;
  Tensor scalars;  // undefined while they go by value
  Tensor grads;    // likewise
};

// The tables of the latest launches. While a CUDA graph is captured, whatever it refers to is kept for good, since
// nobody tells when the graph is gone: a few bytes a tensor of the model, once a capture.
class TableCache {
 public:
  // Hold it from `find` until the launch is on its stream: no other thread may drop the tables in between.
  std::mutex mutex;

  // The tables for a launch on the current device and stream. `rows` and `grads` are null where they go by value.
  DeviceTables find(const TableKey& key, const SegmentTable& table, const std::vector<double>* scalars,
                    const std::vector<const void*>* grads, bool capturing);

  // Keeps what a graph that is being captured refers to.
  void keep(const Tensor& tensor) { kept_.push_back(tensor); }

 private:
  struct Entry {
    TableKey key;
    SegmentTable table;
    std::vector<const void*> grads;
    DeviceTables on_device;
  };

  Tensor upload(int device, size_t bytes, const std::function<void(unsigned char*)>& write, bool capturing);

  static constexpr size_t kEntries = 1024;  // a bucket each, and stepping in backward makes one a parameter

  std::list<Entry> entries_;  // the latest first
  std::vector<Tensor> kept_;
};

// Never destroyed: at the end of the process CUDA may be gone before it.
TableCache& table_cache();

}  // namespace radam_fused
