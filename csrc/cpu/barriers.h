#pragma once

#include "cpu/columns.h"

namespace convbasis {

/// What the promise is for a number of columns above the rank: 2 sqrt(c) / (c + 1), m = c k.
[[nodiscard]] double barrier_epsilon(index_t rank, index_t num_columns);

/// The least number of columns with that promise.
[[nodiscard]] index_t barrier_columns(index_t rank, double epsilon);

/// Inverses of A - low I and of high I - A, and the squares of those inverses: what a step between
/// two barriers needs of A (k, k), symmetric. False unless low < A < high. O(k^3).
struct BarrierInverses {
  explicit BarrierInverses(index_t k)
      : below(k, k), above(k, k), below_squared(k, k), above_squared(k, k) {}
  [[nodiscard]] bool form(const Dense& matrix, double low, double high, const Exec& exec);
  Dense below, above, below_squared, above_squared;
};

/// Squares of the weights of all columns, `num_columns` of them not 0 at most, more than the rank;
/// white (k, n) whitens the columns. Any columns between the barriers keep the promise; the one
/// with the largest slack is taken of those that were best lately.
[[nodiscard]] std::vector<double> barrier_sample(const Columns& x, const Dense& white,
                                                 index_t num_columns,
                                                 const SparsifyOptions::Progress& progress,
                                                 const Exec& exec);

}  // namespace convbasis
