#include "cuda/table_cache.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace radam_fused {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

Tensor bytes_on(DeviceType type, int index, size_t bytes, bool pinned) {
  const int64_t size[] = {int64_t(bytes)};
  return torch::stable::empty({size, 1}, ScalarType::Byte, std::nullopt, torch::stable::Device(type, index), pinned);
}

// While a graph is captured, this thread may allocate only in relaxed mode. These allocations are made at once and are
// no part of the graph.
class AllowAllocations {
 public:
  AllowAllocations() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~AllowAllocations() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  AllowAllocations(const AllowAllocations&) = delete;
  AllowAllocations& operator=(const AllowAllocations&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // after the exchange: the thread's own mode
};

}  // namespace

// One asynchronous copy from pinned memory. torch's allocator does not reuse that memory before the copy is done. A
// graph repeats the copy, so its memory is kept.
Tensor TableCache::upload(int device, size_t bytes, const std::function<void(unsigned char*)>& write, bool capturing) {
  const AllowAllocations allow;
  Tensor host = bytes_on(DeviceType::CPU, -1, bytes, /*pinned=*/true);
  write(static_cast<unsigned char*>(host.mutable_data_ptr()));
  Tensor there = bytes_on(DeviceType::CUDA, device, bytes, /*pinned=*/false);
  torch::stable::copy_(there, host, /*non_blocking=*/true);
  if (capturing) kept_.insert(kept_.end(), {host, there});
  return there;
}

DeviceTables TableCache::find(const TableKey& key, const SegmentTable& table, const std::vector<double>* scalars,
                              const std::vector<const void*>* grads, bool capturing) {
  // A capture runs on a stream of its own, but may use a table of another stream: kept_ keeps it alive.
  TableKey wanted = key;
  auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& candidate) {
    if (capturing) wanted.stream = candidate.key.stream;
    return candidate.key == wanted && (!capturing || candidate.table == table);
  });
  const auto write_table = [&](unsigned char* to) { table.write(to); };
  const auto write_scalars = [&](unsigned char* to) { copy_values(*scalars, to); };
  const auto write_grads = [&](unsigned char* to) { copy_values(*grads, to); };
  const size_t scalar_bytes = scalars != nullptr ? scalars->size() * sizeof(double) : 0;
  const size_t grad_bytes = grads != nullptr ? grads->size() * sizeof(void*) : 0;

  if (capturing) {
    DeviceTables tables;
    if (entry != entries_.end()) {
      tables.segments = entry->on_device.segments;
      kept_.push_back(tables.segments);
    } else {
      tables.segments = upload(key.device, table.bytes(), write_table, capturing);
    }
    if (scalars != nullptr) tables.scalars = upload(key.device, scalar_bytes, write_scalars, capturing);
    if (grads != nullptr) tables.grads = upload(key.device, grad_bytes, write_grads, capturing);
    return tables;
  }

  if (entry == entries_.end()) {
    entries_.push_front({key, table, {}, {upload(key.device, table.bytes(), write_table, false), {}, {}}});
    if (entries_.size() > kEntries) entries_.pop_back();
  } else {
    entries_.splice(entries_.begin(), entries_, entry);
    if (!(entry->table == table)) {
      entry->on_device.segments = upload(key.device, table.bytes(), write_table, false);
      entry->table = table;
    }
  }
  Entry& latest = entries_.front();
  if (grads != nullptr && latest.grads != *grads) {
    latest.on_device.grads = upload(key.device, grad_bytes, write_grads, false);
    latest.grads = *grads;
  }
  if (scalars != nullptr) latest.on_device.scalars = upload(key.device, scalar_bytes, write_scalars, false);
  return latest.on_device;
}

TableCache& table_cache() {
  static TableCache* cache = new TableCache;
  return *cache;
}

}  // namespace radam_fused
