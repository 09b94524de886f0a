// Stands in for the launch on a GPU, with a queue that stays full until another thread of Python makes room: the
// operator step_from_pointers for tensors of the meta device (tests/kernels/test_held_launch.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

namespace {

using torch::stable::Tensor;

std::atomic<bool> launching{false}, room{false}, waited_in_vain{false};

void step_from_pointers(Tensor, int64_t, Tensor, Tensor, Tensor, Tensor, Tensor, bool, std::optional<Tensor>,
                        std::optional<Tensor>, bool, std::optional<Tensor>) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(300);  // a deadlock, which the test is to survive
  launching = true;
  while (!room && Clock::now() < end) std::this_thread::yield();
  waited_in_vain = !room;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(radam_fused, Meta, m) { m.impl("step_from_pointers", TORCH_BOX(&step_from_pointers)); }

extern "C" bool is_launching() { return launching; }
extern "C" bool has_waited_in_vain() { return waited_in_vain; }
extern "C" void make_room() { room = true; }
