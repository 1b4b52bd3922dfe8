#pragma once

#include <vector>

#include "cpu/simd/kernels.h"

namespace convbasis {

/// Twiddle factors of one transform length, a power of two of at least 16. Immutable.
template <class T>
class FftPlan {
 public:
  explicit FftPlan(index_t length);
  FftPlan(const FftPlan&) = delete;
  FftPlan& operator=(const FftPlan&) = delete;

  [[nodiscard]] const BlockFft<T>& fft() const { return fft_; }

 private:
  std::vector<T> twiddles_;
  BlockFft<T> fft_{};
};

}  // namespace convbasis
