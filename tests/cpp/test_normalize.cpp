#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/basis.h"
#include "cpu/strips.h"

using namespace convbasis;

namespace {

/// Weights exp(spread * normal): positive, over many orders of magnitude.
template <class T>
std::vector<T> heavy_tailed(index_t count, double spread, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(std::exp(spread * normal(random)));
  return numbers;
}

/// Largest relative error over rows that are not empty; empty rows have to be zero.
template <class T>
double worst_error(const StripMatrix<T>& matrix, const std::vector<double>& sums) {
  const StripLayout& layout = matrix.layout;
  double worst = 0;
  for (index_t i = 0; i < layout.rows; ++i) {
    long double want = 0;
    for (index_t r = 0; r < layout.count(); ++r)
      for (index_t j = layout.begin(r); j < std::min(layout.end(r), i + 1); ++j)
        want += static_cast<long double>(matrix.kernels.row(r)[i - j]);
    const long double got = sums[static_cast<std::size_t>(i)];
    const auto error = static_cast<double>(want > 0 ? std::abs(got - want) / want : std::abs(got));
    worst = error >= 0 ? std::max(worst, error) : std::numeric_limits<double>::infinity();
  }
  return worst;
}

std::vector<StripLayout> layouts() {
  std::vector<StripLayout> all;
  for (const index_t n : {1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 130, 300})
    all.push_back({n, n, {0}});
  for (const index_t columns : {1, 2, 3, 10, 64, 149, 150})  // windows of every width
    all.push_back({150, columns, {0}});
  all.push_back({150, 150, {7}});
  all.push_back({150, 150, {0, 1, 2, 50, 149}});
  all.push_back({150, 90, {3, 10, 40, 41, 42, 43, 44, 45, 46, 80, 89}});  // more than one group
  all.push_back({20, 20, {}});
  StripLayout every_column{97, 97, {}};
  for (index_t j = 0; j < 97; ++j) every_column.starts.push_back(j);
  all.push_back(every_column);
  return all;
}

}  // namespace

TEST(row_sums_of_heavy_tailed_weights_are_right_in_every_row) {
  const auto check = []<class T>(T) {
    for (const double spread : {0.1, 4.0, 8.0}) {
      for (const StripLayout& layout : layouts()) {
        const std::vector<T> kernels = heavy_tailed<T>(layout.count() * layout.rows, spread, 1);
        const StripMatrix<T> matrix{layout, {kernels.data(), layout.rows}};
        std::vector<double> sums(static_cast<std::size_t>(layout.rows), 99.0);
        sum_rows(matrix, {2}, sums.data());
        // Positive terms in double, at most one rounding each: nothing cancels.
        const double tolerance = static_cast<double>(layout.rows) * 0x1p-53;
        CHECK_NEAR(worst_error(matrix, sums), 0.0, tolerance);
      }
    }
  };
  check(float());
  check(double());
}

TEST(row_sums_that_fall_by_many_orders_do_not_cancel) {
  // A window that slides off a huge lag: differences of long prefix sums would leave noise.
  constexpr index_t kRows = 200;
  std::vector<double> kernel(kRows, 1e-12);
  kernel[3] = 1e12;
  const StripMatrix<double> matrix{{kRows, 10, {0}}, {kernel.data(), kRows}};
  std::vector<double> sums(kRows);
  sum_rows(matrix, {1}, sums.data());
  CHECK_NEAR(worst_error(matrix, sums), 0.0, kRows * 0x1p-53);
  CHECK_NEAR(sums[150], 1e-11, 1e-24);
}

TEST(row_sums_do_not_depend_on_threads) {
  const StripLayout layout{150, 90, {3, 10, 40, 41, 42, 43, 44, 45, 46, 80, 89}};
  const std::vector<float> kernels = heavy_tailed<float>(layout.count() * layout.rows, 4, 2);
  std::vector<double> once(150), again(150);
  sum_rows<float>({layout, {kernels.data(), 150}}, {1}, once.data());
  for (const int threads : {2, 3, 8}) {
    sum_rows<float>({layout, {kernels.data(), 150}}, {threads}, again.data());
    CHECK(once == again);
  }
}

TEST(row_sums_of_a_batch_write_strided_output) {
  constexpr index_t kRows = 33, kStrips = 2, kHeads = 3;
  const std::vector<float> kernels = heavy_tailed<float>(2 * kHeads * kStrips * kRows, 2, 3);
  std::vector<index_t> starts, counts;
  for (index_t head = 0; head < 2 * kHeads; ++head) {
    counts.push_back(head % 3);  // none, one, two strips
    starts.push_back(head % 3 > 0 ? head : kRows);
    starts.push_back(head % 3 > 1 ? 20 : kRows);
  }
  const BasisView<float> basis{
      contiguous_view<const index_t, 3>(starts.data(), {2, kHeads, kStrips}),
      contiguous_view<const index_t, 2>(counts.data(), {2, kHeads}),
      contiguous_view<const float, 4>(kernels.data(), {2, kHeads, kStrips, kRows}), 30};
  std::vector<float> sums(2 * kHeads * kRows, -1.0F);
  const View<float, 3> to{sums.data(), {2, kHeads, kRows}, {1, 2 * kRows, 2}};
  row_sums<float>(basis, to, {2});
  for (index_t b = 0; b < 2; ++b) {
    for (index_t h = 0; h < kHeads; ++h) {
      std::vector<double> got;
      for (index_t i = 0; i < kRows; ++i) got.push_back(static_cast<double>(to(b, h, i)));
      CHECK_NEAR(worst_error(head_strips(basis, b, h), got), 0.0,
                 static_cast<double>(std::numeric_limits<float>::epsilon()));
    }
  }
}
