// radam_fused::step_native on NVIDIA GPUs: one launch a bucket and gradient dtype, on the current stream. Nothing here
// waits for the device.
#include "args/step_args.h"
#include "cuda/kernels.h"
#include "cuda/launch_table.h"
#include "cuda/stream.h"
#include "cuda/table_cache.h"

namespace radam_fused {
namespace {

// The segments of one gradient dtype, ready to go.
template <typename Arguments>
struct Prepared {
  int grad_dtype;
  size_t by_value;
  DeviceTables tables;
  Arguments arguments;
};

// The rows that the host has made, as they go by value and as they go to a table; none where they are on the device.
struct HostScalars {
  std::vector<unsigned char> rounded;
  std::vector<double> table;
};

HostScalars host_scalars(const Launch& launch) {
  if (launch.scalars_on_device) return {};
  return {round_scalars(launch.scalars, launch.scalar_count, launch.format.param_dtype),
          std::vector<double>(launch.scalars, launch.scalars + launch.scalar_count * kScalarColumns)};
}

// Of the arguments' bytes for rows and gradient addresses `capacity` may be used.
template <typename Arguments>
void prepare(const Launch& launch, int grad_dtype, const HostScalars& scalars, bool zero_grads,
             const CurrentStream& current, size_t capacity, Prepared<Arguments>& ready) {
  LaunchBuilder builder(flat_buffers(launch.format, launch.state));
  builder.reserve(launch.segments.size());
  for (const Segment& segment : launch.segments) {
    if (segment.grad_dtype == grad_dtype) builder.add(segment);
  }
  Arguments& arguments = ready.arguments;
  const ByValue passed = pass_by_value(scalars.rounded, builder.grads, capacity, arguments);
  const TableKey key{current.device, current.stream,      launch.state.exp_avg, launch.format.param_dtype,
                     grad_dtype,     builder.grads.size()};
  ready.grad_dtype = grad_dtype;
  ready.by_value = passed.bytes;
  ready.tables = table_cache().find(key, builder.table, passed.scalars ? nullptr : &scalars.table,
                                    passed.grads ? nullptr : &builder.grads, current.capturing);
  builder.table.point(ready.tables.segments.const_data_ptr(), arguments);
  set_state(launch.format, launch.state, grad_dtype, arguments);
  arguments.zero_grads = zero_grads;
  if (launch.scalars_on_device) arguments.scalars = launch.scalars;
  if (!passed.scalars) arguments.scalars = static_cast<const double*>(ready.tables.scalars.const_data_ptr());
  if (!passed.grads) arguments.grads = static_cast<const unsigned char*>(ready.tables.grads.const_data_ptr());
}

// Launches what `start` says, once a gradient dtype.
template <typename Arguments, typename Start>
void launch_each(const Launch& launch, const Tensor& scalars, bool zero_grads, const CurrentStream& current,
                 size_t capacity, const Start& start) {
  const HostScalars made_here = host_scalars(launch);
  const std::lock_guard<std::mutex> lock(table_cache().mutex);
  // Everything that can fail for want of memory comes before the first launch.
  const std::vector<int> dtypes = gradient_dtypes(launch.segments);
  std::vector<Prepared<Arguments>> ready(dtypes.size());
  for (size_t i = 0; i < dtypes.size(); ++i) {
    prepare(launch, dtypes[i], made_here, zero_grads, current, capacity, ready[i]);
  }
  if (current.capturing && launch.scalars_on_device) table_cache().keep(scalars);
  for (const Prepared<Arguments>& one : ready) current.launched(start(one));
}

void run(const Launch& launch, const Tensor& exp_avg, const Tensor& scalars, bool zero_grads) {
  if (launch.segments.empty()) return;
  const CurrentStream current(device_of(exp_avg.get()).index, "radam_fused::step_native");
  if (launch.format.plain()) {
    launch_each<LargeStep>(launch, scalars, zero_grads, current, by_value_capacity<StepTables>(), [&](const auto& one) {
      return launch_step(launch.format.param_dtype, one.grad_dtype, one.arguments, one.by_value, current.device,
                         current.stream);
    });
    return;
  }
  launch_each<LowPrecisionStep>(
      launch, scalars, zero_grads, current, LowPrecisionStep::kCapacity,
      [&](const auto& one) { return launch_low_precision(one.arguments, current.device, current.stream); });
}

void step(StableListHandle params, StableListHandle grads, Tensor exp_avg, Tensor exp_avg_sq, Tensor segments,
          Tensor scalar_index, Tensor scalars, bool zero_grads, std::optional<Tensor> scales,
          std::optional<Tensor> master, bool stochastic, std::optional<Tensor> rng_offsets) {
  const TensorList param_list(params);
  const TensorList grad_list(grads);
  const Launch launch =
      radam_fused::prepare(param_list, grad_list, {exp_avg, exp_avg_sq, scales, master, stochastic, rng_offsets},
                           {segments, scalar_index, scalars});
  run(launch, exp_avg, scalars, zero_grads);
  if (zero_grads) clear_overlapping(grad_list, launch);
}

void step_from_pointers(Tensor pointer_table, int64_t param_dtype, Tensor exp_avg, Tensor exp_avg_sq, Tensor segments,
                        Tensor scalar_index, Tensor scalars, bool zero_grads, std::optional<Tensor> scales,
                        std::optional<Tensor> master, bool stochastic, std::optional<Tensor> rng_offsets) {
  run(prepare_described(pointer_table, int(param_dtype), {exp_avg, exp_avg_sq, scales, master, stochastic, rng_offsets},
                        {segments, scalar_index, scalars}),
      exp_avg, scalars, zero_grads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) {
  m.impl("step_native", TORCH_BOX(&step));
  m.impl("step_described", TORCH_BOX(&step_from_pointers));
}

}  // namespace radam_fused
