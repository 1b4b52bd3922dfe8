#pragma once

namespace roofline {

/// Runs chains of multiply-adds in registers; returns how many floating-point operations they were.
struct FmaChains {
  double (*in_float)(long steps, float factor, float term);
  double (*in_double)(long steps, double factor, double term);
};

/// What this machine can do at most with a number of threads.
struct Peaks {
  double fma_float = 0, fma_double = 0;  ///< GF/s, registers only
  double sgemm = 0;                      ///< GF/s, 1024 x 1024 x 1024 through the library's BLAS
  double memory_copy = 0;                ///< GB/s read plus written, arrays of 4 last-level caches
  double l2_copy = 0;                    ///< GB/s read plus written, half a core's L2 in all
};

[[nodiscard]] Peaks measure_peaks(int threads);

/// Bytes of a core's L2 and of the last-level cache.
[[nodiscard]] long l2_bytes();
[[nodiscard]] long last_level_bytes();

}  // namespace roofline
