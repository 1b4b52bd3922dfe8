#include <algorithm>

#include "core/buffer.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

constexpr index_t kGroups = 8, kRowsPerTask = 4096;

/// Running sums from the start of each run of `width` lags, and to the end of each run (not needed
/// when there is one run). The two are independent, so they are formed side by side.
template <class T>
void sum_runs(const T* kernel, index_t lags, index_t width, double* prefix, double* suffix) {
  if (width >= lags) {
    double sum = 0;
    for (index_t t = 0; t < lags; ++t) prefix[t] = sum += static_cast<double>(kernel[t]);
    return;
  }
  for (index_t run = 0; run < lags; run += width) {
    const index_t stop = std::min(run + width, lags);
    double up = 0, down = 0;
    for (index_t t = run, back = stop - 1; t < stop; ++t, --back) {
      prefix[t] = up += static_cast<double>(kernel[t]);
      suffix[back] = down += static_cast<double>(kernel[back]);
    }
  }
}

/// Adds what strip r gives to each row. Row i sees lags [i - end + 1, i - begin]: a prefix of the
/// kernel while i < end; below, a suffix of one run of `width` lags and a prefix of the next.
template <class T>
void add_strip(const StripMatrix<T>& matrix, index_t r, double* prefix, double* suffix,
               double* sums) {
  const index_t rows = matrix.layout.rows;
  const index_t begin = matrix.layout.begin(r), end = matrix.layout.end(r), width = end - begin;
  if (width <= 0) return;
  sum_runs(matrix.kernels.row(r), rows - begin, width, prefix, suffix);
  for (index_t i = begin; i < end; ++i) sums[i] += prefix[i - begin];
  // Row end - 1 + low sees lags low .. low + width - 1, one whole run when `width` divides low.
  const index_t stop = rows - end + 1;
  for (index_t low = 1; low < stop;) {
    const index_t whole = std::min(round_up(low, width), stop);
    for (; low < whole; ++low) sums[end - 1 + low] += suffix[low] + prefix[low + width - 1];
    if (low < stop) sums[end - 1 + low] += prefix[low + width - 1];
    ++low;
  }
}

}  // namespace

template <class T>
void sum_rows(const StripMatrix<T>& matrix, const Exec& exec, double* sums) {
  // A fixed number of groups, added in order: the same sums whatever the number of threads.
  const index_t rows = matrix.layout.rows, strips = matrix.layout.count();
  const index_t groups = std::min(kGroups, strips);
  Buffer<double> partial(groups * rows);
  parallel_for(exec, groups, [&](index_t group, int) {
    double* mine = partial.data() + group * rows;
    std::fill_n(mine, rows, 0.0);
    Buffer<double> prefix(rows), suffix(rows);
    for (index_t r = group * strips / groups; r < (group + 1) * strips / groups; ++r)
      add_strip(matrix, r, prefix.data(), suffix.data(), mine);
  });
  parallel_for(exec, ceil_div(rows, kRowsPerTask), [&](index_t task, int) {
    const index_t first = task * kRowsPerTask, last = std::min(first + kRowsPerTask, rows);
    std::fill(sums + first, sums + last, 0.0);
    for (index_t group = 0; group < groups; ++group)
      for (index_t i = first; i < last; ++i) sums[i] += partial[group * rows + i];
  });
}

template <class T>
void row_sums(const BasisView<T>& basis, View<T, 3> sums, const Exec& exec) {
  constexpr const char* kName = "row_sums";
  require_basis(kName, basis);
  const auto [batch, heads, k, n] = basis.kernels.shape;
  require_shape(kName, "sums", sums.shape, {batch, heads, n}, "to match the basis");
  if (sums.empty()) return;
  for_each_head(exec, batch * heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, unused] = head_index(flat, heads, heads);
    Buffer<double> row(n);
    sum_rows(head_strips(basis, b, h), inside, row.data());
    for (index_t i = 0; i < n; ++i) sums(b, h, i) = static_cast<T>(row[i]);
  });
}

#define CONVBASIS_INSTANTIATE(T)                                       \
  template void sum_rows(const StripMatrix<T>&, const Exec&, double*); \
  template void row_sums(const BasisView<T>&, View<T, 3>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
