#pragma once

#include <cmath>

#include "cuda/launch.h"

namespace convbasis::cuda {

// C's functions by overload, accurate to a few units in the last place on both devices.
CONVBASIS_DEVICE float exponential(float x) { return expf(x); }
CONVBASIS_DEVICE double exponential(double x) { return exp(x); }

template <class T>
[[nodiscard]] CONVBASIS_DEVICE T larger_of(T a, T b) {
  return a < b ? b : a;
}

/// False for infinity and NaN.
[[nodiscard]] CONVBASIS_DEVICE bool is_finite(double x) { return x - x == 0; }

/// values[0] becomes the sum (or the maximum) of values[0 .. Threads), in an order of its own that
/// never changes. Shared memory; Threads is a power of two.
template <int Threads, class T>
CONVBASIS_DEVICE void sum_all(Block<Threads>& block, T* values) {
  for (int half = Threads / 2; half > 0; half /= 2)
    block.each(half, [&](int i) { values[i] += values[i + half]; });
}
template <int Threads, class T>
CONVBASIS_DEVICE void max_all(Block<Threads>& block, T* values) {
  for (int half = Threads / 2; half > 0; half /= 2)
    block.each(half, [&](int i) { values[i] = larger_of(values[i], values[i + half]); });
}

}  // namespace convbasis::cuda
