#include "cpu/dense.h"

#include "convbasis/error.h"
#include "core/thread_pool.h"

namespace convbasis {
namespace {

constexpr index_t kTile = 64;  ///< rows of a tile, and columns of one of X X^T

constexpr index_t kWideTile = 512;  ///< columns of a tile of a product

}  // namespace

Dense product(const Dense& a, const Dense& b, const Exec& exec) {
  Dense result(a.rows(), b.columns());
  const index_t across = ceil_div(b.columns(), kWideTile);
  parallel_for(exec, ceil_div(a.rows(), kTile) * across, [&](index_t task, int) {
    const index_t top = task / across * kTile, left = task % across * kWideTile;
    blas::multiply<double>(std::min(kTile, a.rows() - top), std::min(kWideTile, b.columns() - left),
                           a.columns(), 1.0, {a.row(top), a.columns()},
                           {b.data() + left, b.columns()}, 0.0,
                           {result.row(top) + left, result.columns()});
  });
  return result;
}

Dense transposed(const Dense& a) {
  Dense result(a.columns(), a.rows());
  for (index_t i = 0; i < a.rows(); ++i)
    for (index_t j = 0; j < a.columns(); ++j) result(j, i) = a(i, j);
  return result;
}

Dense gram_matrix(const View<const double, 2>& x, const Exec& exec) {
  const index_t n = x.shape[0], tiles = ceil_div(n, kTile), gap = x.strides[0];
  Dense gram(n, n);
  parallel_for(exec, tiles * tiles, [&](index_t task, int) {
    const index_t top = task / tiles * kTile, left = task % tiles * kTile;
    if (left > top) return;  // symmetric
    const index_t rows = std::min(kTile, n - top), columns = std::min(kTile, n - left);
    blas::multiply_transposed<double>(rows, columns, x.shape[1], 1.0, {x.data + top * gap, gap},
                                      {x.data + left * gap, gap}, {gram.row(top) + left, n});
    for (index_t i = top; i < top + rows; ++i)
      for (index_t j = left; j < std::min(left + columns, i); ++j) gram(j, i) = gram(i, j);
  });
  return gram;
}

std::vector<double> symmetric_eigen(Dense& matrix) {
  std::vector<double> values(static_cast<std::size_t>(matrix.rows()));
  if (!blas::eigen_decompose(matrix.rows(), {matrix.data(), matrix.columns()}, values.data()))
    throw BackendError(
        "[symmetric_eigen] matrix is not decomposed by LAPACK's dsyevd; expected "
        "its iteration to converge, as it does for finite numbers");
  return values;
}

}  // namespace convbasis
