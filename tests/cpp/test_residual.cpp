#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/recover.h"

using namespace convbasis;

namespace {

constexpr index_t kDim = 6;

template <class T>
std::vector<T> random_numbers(index_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(normal(random));
  return numbers;
}

/// Two query heads that share random keys, and strips that have nothing to do with them.
template <class T>
struct Problem {
  Problem(index_t rows, index_t columns)
      : n(rows),
        m(columns),
        query(random_numbers<T>(2 * n * kDim, 1)),
        key(random_numbers<T>(m * kDim, 2)),
        kernels(random_numbers<T>(2 * 2 * n, 3)),
        starts{0, n / 2, n / 3, n},
        counts{n > 1 ? 2 : 1, 1} {}

  [[nodiscard]] BasisView<T> basis() const {
    return {contiguous_view<const index_t, 3>(starts.data(), {1, 2, 2}),
            contiguous_view<const index_t, 2>(counts.data(), {1, 2}),
            contiguous_view<const T, 4>(kernels.data(), {1, 2, 2, n}), std::min(n, m)};
  }
  [[nodiscard]] std::vector<double> deviation(const std::vector<index_t>& rows, double scale,
                                              int threads = 2) const {
    std::vector<double> result(2, -1);
    View<const index_t, 3> listed{};
    if (!rows.empty()) listed = {rows.data(), {1, 2, static_cast<index_t>(rows.size())}, {0, 0, 1}};
    logit_deviation<T>(contiguous_view<const T, 4>(query.data(), {1, 2, n, kDim}),
                       contiguous_view<const T, 4>(key.data(), {1, 1, m, kDim}), scale, basis(),
                       listed, contiguous_view<double, 2>(result.data(), {1, 2}), {threads});
    return result;
  }
  /// The same by plain loops, and the size of a dot product's terms.
  [[nodiscard]] std::pair<double, double> plain(index_t h, const std::vector<index_t>& rows,
                                                double scale) const {
    double worst = 0, size = 0;
    for (const index_t i : rows) {
      for (index_t j = 0; j < std::min(i + 1, m); ++j) {
        double dot = 0, terms = 0, strip = 0;
        for (index_t c = 0; c < kDim; ++c) {
          const double term =
              static_cast<double>(query[static_cast<std::size_t>((h * n + i) * kDim + c)]) *
              static_cast<double>(key[static_cast<std::size_t>(j * kDim + c)]);
          dot += term;
          terms += std::abs(term);
        }
        for (index_t r = 0; r < counts[static_cast<std::size_t>(h)]; ++r)
          if (j >= starts[static_cast<std::size_t>(2 * h + r)])
            strip = static_cast<double>(kernels[static_cast<std::size_t>((2 * h + r) * n + i - j)]);
        // A kernel is indexed by the lag.
        worst = std::max(worst, std::abs(scale * dot - strip));
        size = std::max(size, std::abs(scale) * terms + std::abs(strip));
      }
    }
    return {worst, size};
  }

  index_t n, m;
  std::vector<T> query, key, kernels;
  std::vector<index_t> starts, counts;
};

std::vector<index_t> all_rows(index_t n) {
  std::vector<index_t> rows(static_cast<std::size_t>(n));
  for (index_t i = 0; i < n; ++i) rows[static_cast<std::size_t>(i)] = i;
  return rows;
}

template <class T>
void check_deviation(index_t n, index_t m, const std::vector<index_t>& rows) {
  const Problem<T> problem(n, m);
  const std::vector<double> got = problem.deviation(rows, 0.7);
  for (index_t h = 0; h < 2; ++h) {
    const auto [want, size] = problem.plain(h, rows.empty() ? all_rows(n) : rows, 0.7);
    const double tolerance = kDim * static_cast<double>(std::numeric_limits<T>::epsilon()) * size;
    CHECK_NEAR(got[static_cast<std::size_t>(h)], want, tolerance);
    CHECK(want > 20 * tolerance || m == 0);
  }
}

}  // namespace

TEST(deviation_of_all_rows_matches_plain_loops) {
  for (const index_t n : {1, 2, 3, 17, 65, 128, 130, 300}) {
    check_deviation<float>(n, n, {});
    check_deviation<double>(n, n, {});
  }
  for (const index_t m : {0, 1, 50, 257, 400}) check_deviation<double>(300, m, {});
}

TEST(deviation_of_listed_rows_matches_plain_loops) {
  check_deviation<float>(300, 300, {17});
  check_deviation<double>(300, 300, {0});
  check_deviation<double>(300, 100, {299, 5, 120, 5, 260});
}

TEST(deviation_of_a_few_rows_is_put_together_from_ranges_of_keys) {
  for (const index_t worst : {3, 1023, 1024, 2500}) {
    check_deviation<float>(2600, 2600, {2599, worst, 0});
    check_deviation<double>(2600, 1500, {worst, 1100});
  }
}

TEST(deviation_does_not_depend_on_threads) {
  const Problem<float> problem(300, 300);
  CHECK(problem.deviation({}, 0.7, 1) == problem.deviation({}, 0.7, 5));
}

TEST(recovered_logits_of_noisy_strips_deviate_by_two_epsilon_at_most) {
  // Exact strips plus noise of at most epsilon an entry (Conv-Basis, recovery theorem).
  constexpr index_t kRows = 120, kWindow = 8;
  constexpr double kDelta = 1.0, kEpsilon = kDelta / (5 * kWindow);
  const std::vector<index_t> starts{0, 30, 31, 90};
  const std::vector<double> kernels = random_numbers<double>(4 * kRows, 5);
  std::mt19937_64 random(6);
  std::uniform_real_distribution<double> noise(-kEpsilon, kEpsilon);
  // One-hot queries: q_i . k_j = k_j[i].
  std::vector<double> query(kRows * kRows), key(kRows * kRows);
  for (index_t i = 0; i < kRows; ++i) {
    query[static_cast<std::size_t>(i * kRows + i)] = 1;
    for (index_t j = 0; j <= i; ++j) {
      const auto strip = std::upper_bound(starts.begin(), starts.end(), j) - starts.begin() - 1;
      key[static_cast<std::size_t>(j * kRows + i)] =
          3 * kernels[static_cast<std::size_t>(strip * kRows + i - j)] + noise(random);
    }
  }
  const auto q = contiguous_view<const double, 4>(query.data(), {1, 1, kRows, kRows});
  const auto k = contiguous_view<const double, 4>(key.data(), {1, 1, kRows, kRows});
  for (const auto search : {RecoverOptions::Search::scan, RecoverOptions::Search::bisect}) {
    const ConvBasis<double> basis =
        recover_basis<double>(q, k, 1, {{}, kWindow, kDelta, kEpsilon, search});
    CHECK(basis.starts == starts);
    double deviation = -1;
    logit_deviation<double>(q, k, 1, basis.view(), {},
                            contiguous_view<double, 2>(&deviation, {1, 1}));
    CHECK(deviation <= 2 * kEpsilon * (1 + 1e-12));
    CHECK(deviation > kEpsilon / 2);  // the noise is seen
  }
}
