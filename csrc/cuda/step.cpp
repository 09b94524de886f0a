// radam_fused::step_native on NVIDIA GPUs: one launch per bucket and gradient dtype, on the current stream. Nothing
// here waits for the device.
#include "args/step_args.h"
#include "cuda/kernels.h"
#include "cuda/launch_table.h"
#include "cuda/stream.h"
#include "cuda/table_cache.h"

namespace radam_fused {
namespace {

// One launch, over the segments whose gradients have one dtype.
template <typename Arguments>
struct Prepared {
  int grad_dtype;
  size_t by_value;
  DeviceTables tables;
  Arguments arguments;
};

// The scalars that the host has computed: rounded, to be passed by value, and in float64, for a table. Both are empty
// where the scalars are on the device.
struct HostScalars {
  std::vector<unsigned char> rounded;
  std::vector<double> table;
};

HostScalars host_scalars(const Launch& launch) {
  if (launch.scalars_on_device) return {};
  return {round_scalars(launch.scalars, launch.scalar_count, launch.format.param_dtype),
          std::vector<double>(launch.scalars, launch.scalars + launch.scalar_count * kScalarColumns)};
}

// `capacity`: how many of the arguments' bytes may hold scalars and gradient addresses.
template <typename Arguments>
void prepare(const Launch& launch, int grad_dtype, const HostScalars& scalars, bool zero_grads,
             const CurrentStream& current, size_t capacity, Prepared<Arguments>& ready) {
  LaunchBuilder builder(flat_buffers(launch.format, launch.state), tile_of(launch.format));
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

// Calls `start` for each gradient dtype.
template <typename Arguments, typename Start>
void launch_each(const Launch& launch, const StepArgs& args, const CurrentStream& current, size_t capacity,
                 const Start& start) {
  const HostScalars scalars = host_scalars(launch);
  const std::lock_guard<std::mutex> lock(table_cache().mutex);
  // All allocations come before the first launch: if one fails, nothing has been written.
  const std::vector<int> dtypes = gradient_dtypes(launch.segments);
  std::vector<Prepared<Arguments>> ready(dtypes.size());
  for (size_t i = 0; i < dtypes.size(); ++i) {
    prepare(launch, dtypes[i], scalars, args.zero_grads, current, capacity, ready[i]);
  }
  if (current.capturing && launch.scalars_on_device) table_cache().keep(args.scalars);
  for (const Prepared<Arguments>& one : ready) current.launched(start(one));
}

void run(const Launch& launch, const StepArgs& args) {
  if (launch.segments.empty()) return;
  const CurrentStream current(device_of(args.exp_avg.get()).index, "radam_fused::step_native");
  if (launch.format.is_full_precision()) {
    launch_each<LargeStep>(launch, args, current, by_value_capacity<StepTables>(), [&](const auto& one) {
      return launch_step(launch.format.param_dtype, one.grad_dtype, one.arguments, one.by_value, current.device,
                         current.stream);
    });
    return;
  }
  launch_each<LowPrecisionStep>(launch, args, current, LowPrecisionStep::kCapacity, [&](const auto& one) {
    return launch_low_precision(one.arguments, current.device, current.stream);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, CUDA, m) {
  m.impl("step_native", TORCH_BOX(&step_operator<run>));
  m.impl("step_from_pointers", TORCH_BOX(&step_from_pointers_operator<run>));
}

}  // namespace radam_fused
