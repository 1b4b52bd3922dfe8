#pragma once

#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// Causal matrices as strips, one set a head: in strip r, columns [starts[r], starts[r+1]), entry
/// (i, j) = kernels[r][i - j] for i >= j. Columns before the first start are zero; the last strip
/// ends at num_columns (Conv-Basis, arXiv 2405.05219, in the cumulative form u_r = b_1 + ... +
/// b_r).
template <class T>
struct BasisView {
  View<const index_t, 3> starts;     ///< (batch, heads, k), increasing, padded with n
  View<const index_t, 2> num_bases;  ///< (batch, heads), strips in use
  View<const T, 4> kernels;          ///< (batch, heads, k, n), last axis contiguous
  index_t num_columns = 0;           ///< key columns, at most n
};

/// Owning form of BasisView, as recover_basis returns it. O(k n) numbers a head.
template <class T>
struct ConvBasis {
  index_t batch = 0, heads = 0, max_bases = 0, rows = 0, num_columns = 0;
  std::vector<index_t> starts;
  std::vector<index_t> num_bases;
  std::vector<char> complete;  ///< per head: no later column differs from its strip's kernel
  std::vector<T> kernels;

  [[nodiscard]] BasisView<T> view() const noexcept {
    return {contiguous_view<const index_t, 3>(starts.data(), {batch, heads, max_bases}),
            contiguous_view<const index_t, 2>(num_bases.data(), {batch, heads}),
            contiguous_view<const T, 4>(kernels.data(), {batch, heads, max_bases, rows}),
            num_columns};
  }
};

/// Row sums of the matrices, (batch, heads, n), without cancellation: windowed prefix sums.
/// Throws InvalidArgument when a shape does not fit. O(k n) a head.
template <class T>
void row_sums(const BasisView<T>& basis, View<T, 3> sums, const Exec& exec = {});

}  // namespace convbasis
