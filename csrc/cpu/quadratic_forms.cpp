// Forms of all columns, and X X^T: what costs most of choosing a few columns for all.

#include <vector>

#include "core/thread_pool.h"
#include "cpu/columns.h"

namespace convbasis {
namespace {

constexpr index_t kBlock = 256;  ///< columns of a matrix product

constexpr index_t kChunk = 2048;  ///< sparse columns that are made dense together

constexpr index_t kTile = 64;  ///< rows and columns of a tile of X X^T

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Forms of `count` columns of a matrix, through matrix * columns.
void dense_forms(const Dense& matrix, blas::Matrix<const double> columns, index_t count,
                 double* forms) {
  const index_t n = matrix.rows();
  Buffer<double> product(n * count);
  blas::multiply<double>(n, count, n, 1.0, {matrix.data(), n}, columns, 0.0,
                         {product.data(), count});
  std::fill_n(forms, count, 0.0);
  for (index_t i = 0; i < n; ++i) {
    const double *x = columns.data + i * columns.stride, *y = product.data() + i * count;
    for (index_t j = 0; j < count; ++j) forms[j] += x[j] * y[j];
  }
}

double sparse_form(const SparseColumns& x, const Dense& matrix, index_t column) {
  const index_t first = x.starts[at(column)], last = x.starts[at(column + 1)];
  double form = 0;
  for (index_t a = first; a < last; ++a) {
    const double* row = matrix.row(x.rows[at(a)]);
    double below = 0;
    for (index_t b = first; b < a; ++b) below += row[x.rows[at(b)]] * x.values[at(b)];
    form += x.values[at(a)] * (2 * below + row[x.rows[at(a)]] * x.values[at(a)]);
  }
  return form;
}

/// Forms of columns [first, last).
void block_forms(const View<const double, 2>& x, const Dense& matrix, index_t first, index_t last,
                 double* forms) {
  dense_forms(matrix, {x.data + first, x.strides[0]}, last - first, forms);
}

void block_forms(const SparseColumns& x, const Dense& matrix, index_t first, index_t last,
                 double* forms) {
  const index_t n = x.num_rows, count = last - first;
  if (cost_of_pairs(x, first, last) <= n * n * count) {
    for (index_t j = first; j < last; ++j) forms[j - first] = sparse_form(x, matrix, j);
    return;
  }
  Dense rows(count, n);
  sparse_block(x, first, last, rows.data());
  const Dense columns = transposed(rows);
  dense_forms(matrix, {columns.data(), count}, count, forms);
}

/// The transposed matrix as columns of its own: the entries row after row.
struct Rows {
  explicit Rows(const SparseColumns& x)
      : starts(at(x.num_rows + 1), 0), columns(x.rows.size()), values(x.rows.size()) {
    for (const index_t row : x.rows) ++starts[at(row + 1)];
    for (std::size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
    std::vector<index_t> next(starts.begin(), starts.end());
    for (index_t j = 0; j + 1 < static_cast<index_t>(x.starts.size()); ++j)
      for (index_t a = x.starts[at(j)]; a < x.starts[at(j + 1)]; ++a) {
        const index_t to = next[at(x.rows[at(a)])]++;
        columns[at(to)] = j;
        values[at(to)] = x.values[at(a)];
      }
  }
  std::vector<index_t> starts, columns;
  std::vector<double> values;
};

/// X X^T row by row, each from the columns that its row meets.
void gram_by_pairs(const SparseColumns& x, Dense& gram, const Exec& exec) {
  const Rows rows(x);
  parallel_for(exec, x.num_rows, [&](index_t i, int) {
    double* sums = gram.row(i);
    for (index_t a = rows.starts[at(i)]; a < rows.starts[at(i + 1)]; ++a) {
      const index_t column = rows.columns[at(a)];
      const double value = rows.values[at(a)];
      for (index_t b = x.starts[at(column)]; b < x.starts[at(column + 1)]; ++b)
        sums[x.rows[at(b)]] += value * x.values[at(b)];
    }
  });
}

/// X X^T chunk by chunk of columns, each made dense.
void gram_by_chunks(const SparseColumns& x, Dense& gram, const Exec& exec) {
  const index_t n = x.num_rows, d = count_of(x), tiles = ceil_div(n, kTile);
  Dense chunk(std::min(kChunk, d), n);
  for (index_t first = 0; first < d; first += kChunk) {
    const index_t count = std::min(kChunk, d - first);
    parallel_for(exec, ceil_div(count, kBlock), [&](index_t block, int) {
      const index_t begin = block * kBlock, end = std::min(begin + kBlock, count);
      sparse_block(x, first + begin, first + end, chunk.row(begin));
    });
    parallel_for(exec, tiles * tiles, [&](index_t task, int) {
      const index_t top = task / tiles * kTile, left = task % tiles * kTile;
      blas::add_transposed_product<double>(std::min(kTile, n - top), std::min(kTile, n - left),
                                           count, {chunk.data() + top, n}, {chunk.data() + left, n},
                                           {gram.row(top) + left, n});
    });
  }
}

}  // namespace

std::vector<double> quadratic_forms(const Columns& x, const Dense& matrix, const Exec& exec) {
  const index_t count = count_of(x);
  std::vector<double> forms(at(count));
  std::visit(
      [&](const auto& kind) {
        parallel_for(exec, ceil_div(count, kBlock), [&](index_t block, int) {
          const index_t first = block * kBlock, last = std::min(first + kBlock, count);
          block_forms(kind, matrix, first, last, forms.data() + first);
        });
      },
      x);
  return forms;
}

double cost_of_forms(const Columns& x) {
  const index_t n = rows_of(x), d = count_of(x);
  const auto dense = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(d);
  const auto* sparse = std::get_if<SparseColumns>(&x);
  if (sparse == nullptr) return dense;
  return std::min(dense, static_cast<double>(cost_of_pairs(*sparse, 0, d)));
}

Dense gram_of(const Columns& x, const Exec& exec) {
  const auto* sparse = std::get_if<SparseColumns>(&x);
  if (sparse == nullptr) return gram_matrix(std::get<View<const double, 2>>(x), exec);
  const index_t n = sparse->num_rows, d = count_of(x);
  Dense gram(n, n, 0.0);
  if (cost_of_pairs(*sparse, 0, d) <= n * n * d)
    gram_by_pairs(*sparse, gram, exec);
  else
    gram_by_chunks(*sparse, gram, exec);
  return gram;
}

}  // namespace convbasis
