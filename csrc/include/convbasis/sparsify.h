#pragma once

#include <span>
#include <variant>

#include "convbasis/types.h"

namespace convbasis {

/// The columns of a sparse matrix one after another (CSC).
struct SparseColumns {
  index_t num_rows = 0;
  std::span<const index_t> starts;  ///< (d + 1); column j is [starts[j], starts[j + 1]) of the rest
  std::span<const index_t> rows;    ///< row of every entry; repeated rows add up
  std::span<const double> values;
};

/// The columns of a matrix (n, d): dense, each row contiguous, or sparse.
using Columns = std::variant<View<const double, 2>, SparseColumns>;

/// x_j^T M x_j of every column, M symmetric (n, n): leverage scores and slacks between barriers are
/// such forms. Of sparse columns, O(sum of nnz_j^2) at most, or by dense blocks where those are
/// cheaper; else O(n^2 d) as matrix products. forms (d).
void quadratic_forms(const Columns& columns, View<const double, 2> matrix, std::span<double> forms,
                     const Exec& exec = {});

/// Inverses of A - low I and of high I - A, and the squares of those inverses: what a step between
/// two barriers needs of A (k, k), symmetric. inverses and squares (2, k, k), contiguous. Throws
/// InvalidArgument unless low < A < high. O(k^3).
void barrier_inverses(View<const double, 2> matrix, double low, double high,
                      View<double, 3> inverses, View<double, 3> squares, const Exec& exec = {});

/// X X^T of a dense matrix X (n, d), each row contiguous. gram (n, n) contiguous. O(n^2 d).
void gram_matrix(View<const double, 2> x, View<double, 2> gram, const Exec& exec = {});

/// Eigenvalues (n) of a symmetric matrix (n, n), increasing, and its eigenvectors as the rows of
/// `vectors` (n, n), contiguous. On the calling thread. Throws BackendError if LAPACK's iteration
/// does not converge. O(n^3).
void symmetric_eigen(View<const double, 2> matrix, std::span<double> values,
                     View<double, 2> vectors);

}  // namespace convbasis
