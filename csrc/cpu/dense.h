#pragma once

#include <algorithm>
#include <vector>

#include "core/buffer.h"
#include "cpu/blas.h"

namespace convbasis {

/// A matrix of doubles with contiguous rows, uninitialised.
class Dense {
 public:
  Dense() = default;
  Dense(index_t rows, index_t columns) : rows_(rows), columns_(columns), data_(rows * columns) {}
  Dense(index_t rows, index_t columns, double value) : Dense(rows, columns) {
    std::fill_n(data(), rows * columns, value);
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t columns() const noexcept { return columns_; }
  [[nodiscard]] double* data() noexcept { return data_.data(); }
  [[nodiscard]] const double* data() const noexcept { return data_.data(); }
  [[nodiscard]] double* row(index_t i) noexcept { return data() + i * columns_; }
  [[nodiscard]] const double* row(index_t i) const noexcept { return data() + i * columns_; }
  double& operator()(index_t i, index_t j) noexcept { return data()[i * columns_ + j]; }
  const double& operator()(index_t i, index_t j) const noexcept { return data()[i * columns_ + j]; }
  [[nodiscard]] View<const double, 2> view() const noexcept {
    return contiguous_view<const double, 2>(data(), {rows_, columns_});
  }
  [[nodiscard]] View<double, 2> view() noexcept {
    return contiguous_view<double, 2>(data(), {rows_, columns_});
  }

 private:
  index_t rows_ = 0, columns_ = 0;
  Buffer<double> data_;
};

/// A B, as tiles.
[[nodiscard]] Dense product(const Dense& a, const Dense& b, const Exec& exec);

[[nodiscard]] Dense transposed(const Dense& a);

/// X X^T of a matrix X (n, d), each row contiguous. Exactly symmetric.
[[nodiscard]] Dense gram_matrix(const View<const double, 2>& x, const Exec& exec);

/// A symmetric matrix (n, n) becomes its eigenvectors, one a row, by increasing eigenvalue; the
/// eigenvalues. On the calling thread. Throws BackendError if LAPACK's iteration does not converge.
[[nodiscard]] std::vector<double> symmetric_eigen(Dense& matrix);

}  // namespace convbasis
