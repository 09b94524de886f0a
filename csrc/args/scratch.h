// Memory that a thread keeps from one call to the next.
#pragma once

#include <utility>
#include <vector>

namespace radam_fused {

// A vector that is empty at first and reuses the memory of the last one of its type on this thread. For requests of 1
// KiB or more glibc's malloc first merges all small free chunks (malloc_consolidate): after freeing 10,000 gradients
// that takes longer than the step.
template <typename T>
class Scratch : public std::vector<T> {
 public:
  Scratch() { this->swap(kept()); }
  ~Scratch() {
    this->clear();
    if (this->capacity() > kept().capacity()) this->swap(kept());
  }
  Scratch(Scratch&& other) noexcept : std::vector<T>(std::move(other)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Scratch& operator=(Scratch&&) = delete;

 private:
  static std::vector<T>& kept() {
    thread_local std::vector<T> memory;
    return memory;
  }
};

}  // namespace radam_fused
