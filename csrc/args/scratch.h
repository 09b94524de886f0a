// Memory that a thread keeps from one call to the next.
#pragma once

#include <array>
#include <utility>
#include <vector>

namespace radam_fused {

// A vector that is empty at first and reuses the memory of an earlier one of its type on this thread; a step of several
// buckets has several at once. For requests of 1 KiB or more glibc's malloc first merges all small free chunks
// (malloc_consolidate): after freeing 10,000 gradients that takes longer than the step.
template <typename T>
class Scratch : public std::vector<T> {
 public:
  Scratch() {
    // The largest is the first.
    for (std::vector<T>& memory : kept()) {
      if (memory.capacity() > 0) {
        this->swap(memory);
        break;
      }
    }
  }
  ~Scratch() {
    if (this->capacity() == 0) return;  // moved from
    this->clear();
    for (std::vector<T>& memory : kept()) {
      if (this->capacity() > memory.capacity()) this->swap(memory);
      if (this->capacity() == 0) return;
    }
  }
  Scratch(Scratch&& other) noexcept : std::vector<T>(std::move(other)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Scratch& operator=(Scratch&&) = delete;

 private:
  static std::array<std::vector<T>, 4>& kept() {
    thread_local std::array<std::vector<T>, 4> memory;
    return memory;
  }
};

}  // namespace radam_fused
