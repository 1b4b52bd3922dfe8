#pragma once

#include <cstdint>

#include "convbasis/types.h"

namespace convbasis {

/// Random numbers that depend on what they are for and on nothing else, so that no order of work
/// changes them: SplitMix64 (Steele, Lea and Flood, 2014) of a seed and up to three indices.
[[nodiscard]] inline double uniform_draw(std::uint64_t seed, index_t a, index_t b, index_t c = 0) {
  std::uint64_t x = seed;
  for (const index_t index : {a, b, c}) {
    x += 0x9e3779b97f4a7c15U * (static_cast<std::uint64_t>(index) + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1p-53;
}

}  // namespace convbasis
