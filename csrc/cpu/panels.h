#pragma once

#include "core/buffer.h"
#include "core/thread_pool.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// Rows of a panel.
constexpr index_t kPanel = 128;

/// Left rows for the fastest product with a panel, at most kQueryTile. OpenBLAS has kernels for
/// AVX-512 that copy nothing, for m * n * k up to a million, at about 1.5 times the speed.
template <class T>
[[nodiscard]] index_t panel_rows(index_t channels);

/// A matrix in panels of kPanel rows, each of them transposed: what to multiply by from the right
/// many times.
template <class T>
class Panels {
 public:
  Panels(Rows<const T> matrix, index_t rows, index_t channels, const Exec& exec);

  /// to[r * stride + j - first] = left.row(r) . matrix.row(j) for r < count, j in [first, last).
  void multiply(Rows<const T> left, index_t count, index_t first, index_t last, T* to,
                index_t stride) const;

 private:
  index_t channels_;
  Buffer<T> numbers_;
};

}  // namespace convbasis
