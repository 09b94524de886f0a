// Errors that the sanitizers must report: the negative controls of `make sanitize`. It is compiled with the flags of
// the extension and works on torch's memory.
#include <cstdint>
#include <thread>

extern "C" {

// The last write is one element past the end.
void write_past_the_end(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i <= count; ++i) values[i] = 1.0f;
}

// `values` was freed by the caller.
float read(const float* values) { return *values; }

std::int64_t add(std::int64_t a, std::int64_t b) { return a + b; }

// Two threads of their own, and two of OpenMP, as torch's are: with `together` both write the same element.
void write_in_threads(float* values, std::int64_t count, bool together) {
  const auto fill = [=](std::int64_t begin) {
    for (std::int64_t i = begin; i < begin + count / 2; ++i) values[i] += 1.0f;
  };
  std::thread other(fill, 0);
  fill(together ? 0 : count / 2);
  other.join();
}

void write_in_openmp(float* values, std::int64_t count, bool together) {
  for (int repetition = 0; repetition < 20; ++repetition) {
#pragma omp parallel for num_threads(2) schedule(static)
    for (std::int64_t i = 0; i < count; ++i) values[together ? 0 : (i + repetition * 7) % count] += 1.0f;
  }
}

}  // extern "C"
