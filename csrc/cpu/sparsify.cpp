#include "convbasis/sparsify.h"

#include <algorithm>
#include <vector>

#include "core/buffer.h"
#include "core/shape.h"
#include "core/thread_pool.h"
#include "cpu/blas.h"

namespace convbasis {
namespace {

constexpr index_t kBlock = 256;  ///< columns of a matrix product

constexpr index_t kTile = 64;  ///< rows and columns of a tile of X X^T

/// One product of entries by index costs about as much as this many inside a matrix product.
constexpr index_t kGather = 16;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Forms of `count` dense columns, through matrix * columns in `product`.
void dense_forms(const View<const double, 2>& matrix, blas::Matrix<const double> columns,
                 index_t count, double* product, double* forms) {
  const index_t n = matrix.shape[0];
  blas::multiply<double>(n, count, n, 1.0, {matrix.data, matrix.strides[0]}, columns, 0.0,
                         {product, count});
  std::fill_n(forms, count, 0.0);
  for (index_t i = 0; i < n; ++i) {
    const double *x = columns.data + i * columns.stride, *y = product + i * count;
    for (index_t j = 0; j < count; ++j) forms[j] += x[j] * y[j];
  }
}

double sparse_form(const SparseColumns& x, const View<const double, 2>& matrix, index_t column) {
  const index_t first = x.starts[at(column)], last = x.starts[at(column + 1)];
  double form = 0;
  for (index_t a = first; a < last; ++a) {
    const double* row = matrix.data + x.rows[at(a)] * matrix.strides[0];
    double below = 0;
    for (index_t b = first; b < a; ++b) below += row[x.rows[at(b)]] * x.values[at(b)];
    form += x.values[at(a)] * (2 * below + row[x.rows[at(a)]] * x.values[at(a)]);
  }
  return form;
}

/// What pairs of entries of the columns cost, in multiply-adds of a matrix product.
index_t cost_of_pairs(const SparseColumns& x, index_t first, index_t last) {
  index_t cost = 0;
  for (index_t j = first; j < last; ++j) {
    const index_t entries = x.starts[at(j + 1)] - x.starts[at(j)];
    cost += entries * (entries + 1) / 2 * kGather;
  }
  return cost;
}

void check(const char* function, const View<const double, 2>& x) {
  require(x.strides[1] == 1 || x.shape[1] <= 1, function,
          "x has rows with gaps; expected contiguous rows");
}

void check(const char* function, const SparseColumns& x) {
  const auto rule = [&](bool holds, const char* message) { require(holds, function, message); };
  const auto entries = static_cast<index_t>(x.values.size());
  rule(!x.starts.empty() && x.starts.front() == 0 && x.starts.back() == entries &&
           std::is_sorted(x.starts.begin(), x.starts.end()),
       "starts does not divide the entries; expected 0 <= ... <= their number");
  rule(static_cast<index_t>(x.rows.size()) == entries,
       "rows has another length than values; expected one row for every value");
  rule(std::all_of(x.rows.begin(), x.rows.end(),
                   [&](index_t row) { return 0 <= row && row < x.num_rows; }),
       "rows has entries outside of the matrix; expected 0 <= row < num_rows");
}

index_t rows_of(const View<const double, 2>& x) { return x.shape[0]; }
index_t rows_of(const SparseColumns& x) { return x.num_rows; }
index_t count_of(const View<const double, 2>& x) { return x.shape[1]; }
index_t count_of(const SparseColumns& x) { return static_cast<index_t>(x.starts.size()) - 1; }

/// Forms of columns [first, last).
void block_forms(const View<const double, 2>& x, const View<const double, 2>& matrix, index_t first,
                 index_t last, double* forms) {
  Buffer<double> product(x.shape[0] * (last - first));
  dense_forms(matrix, {x.data + first, x.strides[0]}, last - first, product.data(), forms);
}

void block_forms(const SparseColumns& x, const View<const double, 2>& matrix, index_t first,
                 index_t last, double* forms) {
  const index_t n = x.num_rows, count = last - first;
  if (cost_of_pairs(x, first, last) <= n * n * count) {
    for (index_t j = first; j < last; ++j) forms[j - first] = sparse_form(x, matrix, j);
    return;
  }
  Buffer<double> dense(n * count), product(n * count);
  std::fill_n(dense.data(), n * count, 0.0);
  for (index_t j = first; j < last; ++j)
    for (index_t a = x.starts[at(j)]; a < x.starts[at(j + 1)]; ++a)
      dense[x.rows[at(a)] * count + j - first] += x.values[at(a)];
  dense_forms(matrix, {dense.data(), count}, count, product.data(), forms);
}

}  // namespace

void quadratic_forms(const Columns& columns, View<const double, 2> matrix, std::span<double> forms,
                     const Exec& exec) {
  std::visit(
      [&](const auto& x) {
        check("quadratic_forms", x);
        const index_t n = rows_of(x), count = count_of(x);
        require_shape("quadratic_forms", "matrix", matrix.shape, {n, n}, "to match columns");
        require(matrix.strides[1] == 1 || n <= 1, "quadratic_forms",
                "matrix has rows with gaps; expected contiguous rows");
        require(static_cast<index_t>(forms.size()) == count, "quadratic_forms",
                "forms has " + std::to_string(forms.size()) + " elements; expected " +
                    std::to_string(count));
        parallel_for(exec, ceil_div(count, kBlock), [&](index_t block, int) {
          const index_t first = block * kBlock, last = std::min(first + kBlock, count);
          block_forms(x, matrix, first, last, forms.data() + first);
        });
      },
      columns);
}

void barrier_inverses(View<const double, 2> matrix, double low, double high,
                      View<double, 3> inverses, View<double, 3> squares, const Exec& exec) {
  const index_t k = matrix.shape[0];
  require_shape("barrier_inverses", "matrix", matrix.shape, {k, k}, "a square");
  require_shape("barrier_inverses", "inverses", inverses.shape, {2, k, k}, "to match matrix");
  require_shape("barrier_inverses", "squares", squares.shape, {2, k, k}, "to match matrix");
  bool between[2] = {};
  parallel_for(exec, 2, [&](index_t side, int) {
    const double sign = side == 0 ? 1 : -1, barrier = side == 0 ? low : high;
    double* inverse = inverses.data + side * k * k;
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j < k; ++j)
        inverse[i * k + j] = sign * (matrix(i, j) - (i == j ? barrier : 0.0));
    between[side] = blas::invert_positive_definite(k, {inverse, k});
    blas::multiply<double>(k, k, k, 1.0, {inverse, k}, {inverse, k}, 0.0,
                           {squares.data + side * k * k, k});
  });
  require(between[0] && between[1], "barrier_inverses",
          "matrix is not between its barriers; expected low < matrix < high");
}

void gram_matrix(View<const double, 2> x, View<double, 2> gram, const Exec& exec) {
  const index_t n = x.shape[0], tiles = ceil_div(n, kTile);
  check("gram_matrix", x);
  require_shape("gram_matrix", "gram", gram.shape, {n, n}, "to match x");
  parallel_for(exec, tiles * tiles, [&](index_t task, int) {
    const index_t top = task / tiles * kTile, left = task % tiles * kTile;
    if (left > top) return;  // symmetric
    const index_t rows = std::min(kTile, n - top), columns = std::min(kTile, n - left);
    const index_t gap = x.strides[0];
    blas::multiply_transposed<double>(rows, columns, x.shape[1], 1.0, {x.data + top * gap, gap},
                                      {x.data + left * gap, gap}, {gram.data + top * n + left, n});
    for (index_t i = top; i < top + rows; ++i)
      for (index_t j = left; j < std::min(left + columns, i); ++j) gram(j, i) = gram(i, j);
  });
}

void symmetric_eigen(View<const double, 2> matrix, std::span<double> values,
                     View<double, 2> vectors) {
  const index_t n = matrix.shape[0];
  require_shape("symmetric_eigen", "matrix", matrix.shape, {n, n}, "a square");
  require_shape("symmetric_eigen", "vectors", vectors.shape, {n, n}, "to match matrix");
  require(
      static_cast<index_t>(values.size()) == n, "symmetric_eigen",
      "values has " + std::to_string(values.size()) + " elements; expected " + std::to_string(n));
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < n; ++j) vectors(i, j) = matrix(i, j);
  if (!blas::eigen_decompose(n, {vectors.data, n}, values.data()))
    throw BackendError(
        "[symmetric_eigen] matrix is not decomposed by LAPACK's dsyevd; expected "
        "its iteration to converge, as it does for finite numbers");
}

}  // namespace convbasis
