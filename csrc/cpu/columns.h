#pragma once

#include "convbasis/sparsify.h"
#include "cpu/dense.h"

namespace convbasis {

[[nodiscard]] index_t rows_of(const Columns& x);
[[nodiscard]] index_t count_of(const Columns& x);
[[nodiscard]] index_t entries_of(const Columns& x);

/// Throws InvalidArgument unless dense rows are contiguous, and sparse columns are CSC.
void require_columns(const char* function, const Columns& x);

/// The columns times a power of two that keeps their squares in range: a copy where it is not 1.
struct ScaledColumns {
  Columns columns;
  double factor = 1.0;
  Buffer<double> copy;
};

/// Throws InvalidArgument for NaN and infinity.
[[nodiscard]] ScaledColumns scaled_columns(const char* function, const Columns& x,
                                           const Exec& exec);

/// Columns with any entry that is not 0.
[[nodiscard]] std::vector<index_t> nonzero_columns(const Columns& x);

/// X[:, indices].
[[nodiscard]] Dense take_columns(const Columns& x, std::span<const index_t> indices,
                                 const Exec& exec);

/// Columns [first, last) of a sparse matrix, each as a row of `dense` (last - first, n).
void sparse_block(const SparseColumns& x, index_t first, index_t last, double* dense);

/// What all pairs of entries within columns [first, last) cost, in multiply-adds of a matrix
/// product.
[[nodiscard]] index_t cost_of_pairs(const SparseColumns& x, index_t first, index_t last);

/// X X^T: O(n^2 d), of sparse columns O(sum of nnz_j^2), or by dense blocks where those are
/// cheaper.
[[nodiscard]] Dense gram_of(const Columns& x, const Exec& exec);

/// x_j^T M x_j of every column, M symmetric: leverage scores and slacks between barriers are such
/// forms. At the same cost.
[[nodiscard]] std::vector<double> quadratic_forms(const Columns& x, const Dense& matrix,
                                                  const Exec& exec);

/// What `quadratic_forms` costs, in multiply-adds of a matrix product.
[[nodiscard]] double cost_of_forms(const Columns& x);

}  // namespace convbasis
