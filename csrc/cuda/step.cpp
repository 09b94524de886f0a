// radam_fused::step_native on NVIDIA GPUs: one launch a bucket and gradient dtype, on the current stream. Nothing here
// waits for the device.
#include "../launch.h"
#include "stream.h"
#include "tables.h"

namespace radam_fused {
namespace {

// The segments of one gradient dtype, ready to go.
struct Prepared {
  int grad_dtype;
  size_t by_value;
  DeviceTables tables;
  LargeStep arguments;
};

// The rows that the host has made, as they go by value and as they go to a table; none where they are on the device.
struct HostRows {
  std::vector<unsigned char> rounded;
  std::vector<double> table;
};

HostRows host_rows(const Launch& launch) {
  if (launch.rows_on_device) return {};
  return {round_rows(launch.rows, launch.row_count, launch.param_dtype),
          std::vector<double>(launch.rows, launch.rows + launch.row_count * kRowColumns)};
}

void prepare(const Launch& launch, int grad_dtype, const HostRows& rows, bool zero_grads, const CurrentStream& current,
             Prepared& ready) {
  LaunchBuilder builder(launch.exp_avg, launch.exp_avg_sq, item_size(moment_dtype(launch.param_dtype)));
  builder.reserve(launch.segments.size());
  for (const Segment& segment : launch.segments) {
    if (segment.grad_dtype == grad_dtype) builder.add(segment);
  }
  LargeStep& arguments = ready.arguments;
  const ByValue passed = pass_by_value(rows.rounded, builder.grads, by_value_capacity<StepTables>(), arguments);
  const TableKey key{current.device,     current.stream, launch.exp_avg,
                     launch.param_dtype, grad_dtype,     builder.grads.size()};
  ready.grad_dtype = grad_dtype;
  ready.by_value = passed.bytes;
  ready.tables = table_cache().find(key, builder.table, passed.rows ? nullptr : &rows.table,
                                    passed.grads ? nullptr : &builder.grads, current.capturing);
  builder.table.point(ready.tables.segments.const_data_ptr(), arguments);
  arguments.exp_avg = launch.exp_avg;
  arguments.exp_avg_sq = launch.exp_avg_sq;
  arguments.zero_grads = zero_grads;
  if (launch.rows_on_device) arguments.rows = launch.rows;
  if (!passed.rows) arguments.rows = static_cast<const double*>(ready.tables.rows.const_data_ptr());
  if (!passed.grads) arguments.grads = static_cast<const unsigned char*>(ready.tables.grads.const_data_ptr());
}

void run(const Launch& launch, const Tensor& exp_avg, const Tensor& rows, bool zero_grads) {
  if (launch.segments.empty()) return;

  const CurrentStream current(device_of(exp_avg.get()).index, "radam_fused::step_native");
  const HostRows made_here = host_rows(launch);
  const std::lock_guard<std::mutex> lock(table_cache().mutex);
  // Everything that can fail for want of memory comes before the first launch.
  const std::vector<int> dtypes = gradient_dtypes(launch.segments);
  std::vector<Prepared> ready(dtypes.size());
  for (size_t i = 0; i < dtypes.size(); ++i) prepare(launch, dtypes[i], made_here, zero_grads, current, ready[i]);
  if (current.capturing && launch.rows_on_device) table_cache().keep(rows);
  for (const Prepared& one : ready) {
    current.launched(
        launch_step(launch.param_dtype, one.grad_dtype, one.arguments, one.by_value, current.device, current.stream));
  }
}

void step(StableListHandle params, StableListHandle grads, Tensor exp_avg, Tensor exp_avg_sq, Tensor segments,
          Tensor row_of, Tensor rows, bool zero_grads) {
  const TensorList param_list(params);
  const TensorList grad_list(grads);
  const Launch launch = radam_fused::prepare(param_list, grad_list, exp_avg, exp_avg_sq, segments, row_of, rows);
  run(launch, exp_avg, rows, zero_grads);
  if (zero_grads) clear_overlapping(grad_list, launch);
}

void step_described(Tensor described, int64_t param_dtype, Tensor exp_avg, Tensor exp_avg_sq, Tensor segments,
                    Tensor row_of, Tensor rows, bool zero_grads) {
  run(prepare_described(described, int(param_dtype), exp_avg, exp_avg_sq, segments, row_of, rows), exp_avg, rows,
      zero_grads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) {
  m.impl("step_native", TORCH_BOX(&step));
  m.impl("step_described", TORCH_BOX(&step_described));
}

}  // namespace radam_fused
