#include <algorithm>
#include <cmath>

#include "builds.h"
#include "check.h"

using namespace convbasis;

TEST(norm_and_magnitude_are_right_at_every_scale) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    using Limits = std::numeric_limits<T>;
    for_each_vector<T>(45, [&](T* x, index_t n) {
      if (n == 0) return;
      const double norm = simd.norm(x, n);
      T largest = 0;
      for (index_t i = 0; i < n; ++i) {
        largest = std::max(largest, std::abs(x[i]));
        x[i] = std::ldexp(x[i], Limits::min_exponent + 12);  // exact; the squares underflow
      }
      CHECK(norm > 0 && simd.norm(x, n) == std::ldexp(norm, Limits::min_exponent + 12));
      CHECK(simd.max_magnitude(x, n) == std::ldexp(largest, Limits::min_exponent + 12));
      const int up = Limits::max_exponent - Limits::min_exponent - 24;
      for (index_t i = 0; i < n; ++i) x[i] = -std::ldexp(x[i], up);  // the squares overflow
      CHECK(simd.norm(x, n) == std::ldexp(norm, Limits::max_exponent - 12));
      CHECK(simd.max_magnitude(x, n) == std::ldexp(largest, Limits::max_exponent - 12));
    });
    const std::vector<T> tiny(5, Limits::denorm_min());  // the result is a double of whole units
    const double rounding = sizeof(T) == 4 ? 5 * kEps<T> : 0.5;
    CHECK_NEAR(simd.norm(tiny.data(), 5) / Limits::denorm_min(), std::sqrt(5.0), rounding);
  });
}

TEST(rows_measured_together_are_as_large_as_each_is_alone) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    using Limits = std::numeric_limits<T>;
    for (const index_t channels : {1, 7, 16, 64, 67}) {
      for (const index_t count : {0, 1, 5, 16, 33}) {
        const index_t stride = channels + 3;
        std::vector<T> x = random_numbers<T>(count * stride + 1, 46);
        if (count > 4) {  // rows of zeros, and whose squares vanish or overflow
          std::fill_n(x.data() + 2 * stride, channels, T(0));
          std::fill_n(x.data() + 3 * stride, channels, Limits::min());
          std::fill_n(x.data() + 4 * stride, channels, -Limits::max() / 128);
        }
        std::vector<T> peaks(static_cast<std::size_t>(count));
        std::vector<double> norms(static_cast<std::size_t>(count));
        simd.measure_rows({x.data(), stride}, count, channels, peaks.data(), norms.data());
        for (index_t i = 0; i < count; ++i) {
          const T* row = x.data() + i * stride;
          const double norm = simd.norm(row, channels);
          CHECK(peaks[static_cast<std::size_t>(i)] == simd.max_magnitude(row, channels));
          CHECK_NEAR(norms[static_cast<std::size_t>(i)], norm, 8 * kEps<T> * norm);
        }
      }
    }
  });
}
