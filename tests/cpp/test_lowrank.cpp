#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/attention.h"
#include "convbasis/error.h"
#include "convbasis/lowrank.h"
#include "convbasis/polynomial.h"
#include "cpu/features.h"
#include "cpu/lowrank_operator.h"

using namespace convbasis;

namespace {

using Sees = std::function<bool(index_t, index_t)>;

template <class T>
std::vector<T> random_numbers(index_t count, unsigned seed, double spread) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(-spread, spread);
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(uniform(random));
  return numbers;
}

/// One head, and P(logit) summed entry by entry in long double.
template <class T>
struct Problem {
  Problem(index_t n_q, index_t n_kv, index_t head_dim, index_t value_dim)
      : rows(n_q),
        keys(n_kv),
        dim(head_dim),
        channels(value_dim),
        query(random_numbers<T>(n_q * head_dim, 1, 1)),
        key(random_numbers<T>(n_kv * head_dim, 2, 1)),
        value(random_numbers<T>(n_kv * value_dim, 3, 1)),
        out(static_cast<std::size_t>(n_q * value_dim), T(7)),
        lse(static_cast<std::size_t>(n_q), T(7)) {
    polynomial.coefficients = {1, 1, 0.5, 0.2, 0.03};
    polynomial.centre = random_numbers<double>(head_dim, 4, 0.3);
    scale = 1 / static_cast<double>(head_dim);
  }

  LowRankReport run(bool is_causal = false, const Mask& mask = {}, int threads = 2) {
    return polynomial_attention<T>(
        contiguous_view<const T, 4>(query.data(), {1, 1, rows, dim}),
        contiguous_view<const T, 4>(key.data(), {1, 1, keys, dim}),
        contiguous_view<const T, 4>(value.data(), {1, 1, keys, channels}),
        contiguous_view<T, 4>(out.data(), {1, 1, rows, channels}),
        contiguous_view<T, 3>(lse.data(), {1, 1, rows}), std::span(&polynomial, 1),
        {scale, is_causal, mask}, {}, {threads});
  }

  /// Weights are at most 3 and at least 0.2 here, so that errors are of the sums' size.
  void check(const Sees& sees) const {
    const double tolerance = 64 * static_cast<double>(std::numeric_limits<T>::epsilon()) *
                             std::sqrt(static_cast<double>(keys) + 1000);
    for (index_t i = 0; i < rows; ++i) {
      long double total = 0, taken_off = 0;
      std::vector<long double> sums(static_cast<std::size_t>(channels), 0);
      for (index_t c = 0; c < dim; ++c)
        taken_off += static_cast<long double>(query[at(i * dim + c)]) * centre(c);
      for (index_t j = 0; j < keys; ++j) {
        if (!sees(i, j)) continue;
        long double dot = 0, weight = 0;
        for (index_t c = 0; c < dim; ++c)
          dot += static_cast<long double>(query[at(i * dim + c)]) *
                 (static_cast<long double>(key[at(j * dim + c)]) - centre(c));
        for (std::size_t p = polynomial.coefficients.size(); p-- > 0;)
          weight = weight * scale * dot + polynomial.coefficients[p];
        total += weight;
        for (index_t c = 0; c < channels; ++c)
          sums[at(c)] += weight * static_cast<long double>(value[at(j * channels + c)]);
      }
      for (index_t c = 0; c < channels; ++c) {
        const long double want = total > 0 ? sums[at(c)] / total : 0;
        CHECK_NEAR(static_cast<double>(out[at(i * channels + c)]), static_cast<double>(want),
                   tolerance);
      }
      if (total > 0)
        CHECK_NEAR(static_cast<double>(lse[at(i)]),
                   static_cast<double>(std::log(total) + scale * taken_off), 4 * tolerance);
      else
        CHECK(std::isinf(lse[at(i)]));
    }
  }
  [[nodiscard]] long double centre(index_t c) const {
    return polynomial.centre.empty() ? 0 : polynomial.centre[at(c)];
  }
  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

  index_t rows, keys, dim, channels;
  std::vector<T> query, key, value, out, lse;
  HeadPolynomial polynomial;
  double scale;
};

template <class T>
void check_all_sizes() {
  for (const index_t n : {1, 2, 3, 15, 33, 64, 65, 127, 130, 257, 500})
    for (const index_t dim : {1, 3, 8})
      for (const bool is_causal : {false, true}) {
        Problem<T> problem(n, n + (n % 3) * 40, dim, dim == 3 ? 17 : dim);
        problem.run(is_causal);
        problem.check([=](index_t i, index_t j) { return !is_causal || j <= i; });
      }
}

}  // namespace

TEST(monomials_of_two_rows_give_the_polynomial_of_their_product) {
  for (const auto& [dim, degree] :
       {std::pair<index_t, index_t>{1, 0}, {1, 5}, {3, 1}, {4, 4}, {16, 2}}) {
    const Monomials monomials(dim, degree);
    CHECK(monomials.count() == feature_count(dim, degree));
    const auto x = random_numbers<double>(dim, 1, 1), y = random_numbers<double>(dim, 2, 1);
    const auto coefficients = random_numbers<double>(degree + 1, 3, 1);
    const std::vector<double> weights = monomials.weights(coefficients);
    const index_t size = monomials.padded() + kFeatureBlock;
    for (const Kernels<double>* build : available_kernels<double>()) {
      Buffer<double> x_numbers(size), y_numbers(size);
      double* const a = x_numbers.data() + kFeatureBlock;
      double* const b = y_numbers.data() + kFeatureBlock;
      const auto runs = monomials.runs();
      const auto along = build->low_rank.monomials_along;
      along(x.data(), dim, 1, runs.data(), static_cast<index_t>(runs.size()), a, 0);
      along(y.data(), dim, 1, runs.data(), static_cast<index_t>(runs.size()), b, 0);
      double got = 0, dot = 0, want = 0;
      for (index_t f = 0; f < monomials.count(); ++f)
        got += weights[static_cast<std::size_t>(f)] * a[f] * b[f];
      for (std::size_t c = 0; c < x.size(); ++c) dot += x[c] * y[c];
      for (std::size_t p = coefficients.size(); p-- > 0;) want = want * dot + coefficients[p];
      CHECK_NEAR(got, want, 1e-12);
    }
  }
}

TEST(polynomial_attention_is_the_dense_sum_float) { check_all_sizes<float>(); }
TEST(polynomial_attention_is_the_dense_sum_double) { check_all_sizes<double>(); }

TEST(windows_of_any_order_are_the_dense_sum) {
  for (const index_t width : {1, 20, 300, 1200})
    for (const bool is_causal : {false, true})
      for (const bool is_shuffled : {false, true}) {
        Problem<float> problem(700, 1500, 4, 4);
        std::vector<index_t> start(700), stop(700);
        for (std::size_t i = 0; i < 700; ++i) {
          const std::size_t k = is_shuffled ? i * 389 % 700 : i;
          start[i] = static_cast<index_t>(is_shuffled ? i * 211 % 900 : i);
          stop[i] =
              std::min<index_t>(start[i] + width + static_cast<index_t>(k % 5 == 0 ? 0 : k), 1500);
        }
        problem.run(is_causal, masks::RowWindow{start, stop});
        problem.check([&](index_t i, index_t j) {
          const auto row = static_cast<std::size_t>(i);
          return start[row] <= j && j < stop[row] && (!is_causal || j <= i);
        });
      }
}

TEST(patterns_and_tokens_are_the_dense_sum) {
  constexpr index_t n = 400;
  std::vector<index_t> pattern(n);
  for (std::size_t i = 0; i < n; ++i) pattern[i] = static_cast<index_t>(i * 7 % 3);
  bool patterns[3 * n];
  for (index_t i = 0; i < 3 * n; ++i) patterns[i] = i % 5 < 2 && i < 2 * n;
  const auto view = contiguous_view<const bool, 2>(patterns, {3, n});
  const std::vector<index_t> tokens{0, 17, 333};
  const auto is_global = [](index_t i) { return i == 0 || i == 17 || i == 333; };
  for (const bool is_causal : {false, true}) {
    const auto check = [&](const Mask& mask, const Sees& sees) {
      Problem<float> problem(n, n, 5, 6);
      problem.run(is_causal, mask);
      problem.check([&](index_t i, index_t j) { return sees(i, j) && (!is_causal || j <= i); });
    };
    const auto of = [&](index_t i) { return pattern[static_cast<std::size_t>(i)]; };
    check(masks::DistinctRows{pattern, view}, [&](index_t i, index_t j) { return view(of(i), j); });
    check(masks::DistinctColumns{pattern, view},
          [&](index_t i, index_t j) { return view(of(j), i); });
    check(masks::SlidingWindow{30}, [](index_t i, index_t j) { return std::abs(i - j) < 30; });
    check(masks::Longformer{30, tokens}, [&](index_t i, index_t j) {
      return std::abs(i - j) < 30 || is_global(i) || is_global(j);
    });
  }
}

TEST(changing_rows_are_the_dense_sum) {
  constexpr index_t n = 600;
  // Key j stays for rows j to 2 j + 40, but the first 300 keys leave at once at row 500.
  std::vector<index_t> first{0}, added, removed, added_at{0}, removed_at{0};
  const auto leaves = [](index_t j) { return j < 300 ? std::min<index_t>(2 * j + 40, 500) : n; };
  for (index_t row = 1; row < n; ++row) {
    added.push_back(row);
    for (index_t j = 0; j < row; ++j)
      if (leaves(j) == row) removed.push_back(j);
    added_at.push_back(static_cast<index_t>(added.size()));
    removed_at.push_back(static_cast<index_t>(removed.size()));
  }
  const masks::RowChange mask{first, {added, added_at}, {removed, removed_at}};
  for (const bool is_causal : {false, true}) {
    Problem<float> problem(n, n, 4, 4);
    problem.run(is_causal, mask);
    problem.check([&](index_t i, index_t j) { return j <= i && i < leaves(j); });
  }
  removed[0] = 599;
  Problem<float> problem(n, n, 4, 4);
  CHECK_THROWS(problem.run(false, mask), InvalidArgument, "removes key 599 at row 40");
  problem.polynomial.exact_columns = {3};
  CHECK_THROWS(problem.run(false, mask), Unsupported, "exact columns with a RowChange mask");
}

TEST(listed_columns_have_exact_weights) {
  Problem<double> problem(300, 300, 3, 5);
  problem.polynomial.coefficients = {1, 1, 0.5, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720};
  problem.polynomial.exact_columns = {0, 7, 299};
  for (const std::size_t j : {0, 7, 299})
    for (std::size_t c = 0; c < 3; ++c) problem.key[3 * j + c] *= 300;  // logits beyond 200
  for (const bool is_causal : {false, true}) {
    problem.run(is_causal, masks::SlidingWindow{200});
    std::vector<double> exact(1500), lse(300);
    exact_attention<double>(contiguous_view<const double, 4>(problem.query.data(), {1, 1, 300, 3}),
                            contiguous_view<const double, 4>(problem.key.data(), {1, 1, 300, 3}),
                            contiguous_view<const double, 4>(problem.value.data(), {1, 1, 300, 5}),
                            contiguous_view<double, 4>(exact.data(), {1, 1, 300, 5}),
                            contiguous_view<double, 3>(lse.data(), {1, 1, 300}),
                            {problem.scale, is_causal, masks::SlidingWindow{200}});
    for (std::size_t i = 0; i < exact.size(); ++i) CHECK_NEAR(problem.out[i], exact[i], 2e-3);
    for (std::size_t i = 0; i < lse.size(); ++i) CHECK_NEAR(problem.lse[i], lse[i], 2e-3);
  }
}

TEST(later_keys_change_no_earlier_row) {
  Problem<float> problem(900, 900, 6, 8);
  problem.run(true);
  const std::vector<float> before = problem.out;
  for (std::size_t i = 450 * 6; i < 900 * 6; ++i) problem.key[i] *= -0.5F;
  for (std::size_t i = 450 * 8; i < 900 * 8; ++i) problem.value[i] += 1;
  problem.run(true);
  CHECK(std::equal(before.begin(), before.begin() + 450 * 8, problem.out.begin()));
  CHECK(!std::equal(before.begin(), before.end(), problem.out.begin()));
}

TEST(balance_of_keys_and_queries_changes_no_bit) {
  for (const int power : {10, -10, 60}) {
    Problem<float> problem(300, 300, 4, 5);
    problem.run(true);
    const std::vector<float> out = problem.out, lse = problem.lse;
    for (float& number : problem.query) number = std::ldexp(number, power);
    for (float& number : problem.key) number = std::ldexp(number, -power);
    for (double& number : problem.polynomial.centre) number = std::ldexp(number, -power);
    CHECK(problem.run(true).rows_exact[0] == 0);
    CHECK(problem.out == out);
    CHECK(problem.lse == lse);
  }
}

TEST(large_later_keys_change_no_earlier_row) {
  Problem<float> problem(300, 300, 4, 5);
  problem.run(true);
  const std::vector<float> before = problem.out;
  for (std::size_t i = 200 * 4; i < problem.key.size(); ++i) problem.key[i] *= 1e4F;
  problem.run(true);
  for (std::size_t i = 0; i < 200 * 5; ++i) CHECK(problem.out[i] == before[i]);
}

TEST(results_do_not_depend_on_the_number_of_threads) {
  Problem<float> problem(3000, 3000, 8, 8);
  for (const bool is_causal : {false, true}) {
    problem.run(is_causal, {}, 1);
    const std::vector<float> alone = problem.out;
    problem.run(is_causal, {}, 3);
    CHECK(alone == problem.out);
  }
}

TEST(rows_without_a_positive_sum_are_computed_exactly) {
  Problem<double> problem(50, 50, 2, 3);
  problem.polynomial.coefficients = {-1, 0.5};
  problem.polynomial.exact_rows = {3};
  const LowRankReport report = problem.run(true);
  CHECK(report.rows_exact[0] == 50);
  std::vector<double> exact(150);
  exact_attention<double>(contiguous_view<const double, 4>(problem.query.data(), {1, 1, 50, 2}),
                          contiguous_view<const double, 4>(problem.key.data(), {1, 1, 50, 2}),
                          contiguous_view<const double, 4>(problem.value.data(), {1, 1, 50, 3}),
                          contiguous_view<double, 4>(exact.data(), {1, 1, 50, 3}), {},
                          {problem.scale, true});
  for (std::size_t i = 0; i < exact.size(); ++i) CHECK_NEAR(problem.out[i], exact[i], 1e-14);
}

TEST(products_and_transposed_products_are_adjoint) {
  Problem<double> problem(300, 260, 3, 5);
  const auto view = [](const std::vector<double>& numbers, index_t rows, index_t channels) {
    return contiguous_view<const double, 2>(numbers.data(), {rows, channels});
  };
  std::vector<index_t> start(300), stop(300);
  for (std::size_t i = 0; i < 300; ++i) {
    start[i] = static_cast<index_t>(i / 2);
    stop[i] = static_cast<index_t>(i / 2 + 90);
  }
  const std::vector<index_t> tokens{0, 100};
  for (const Mask& mask : {Mask{}, Mask{masks::RowWindow{start, stop}},
                           Mask{masks::SlidingWindow{40}}, Mask{masks::Longformer{9, tokens}}})
    for (const bool is_causal : {false, true}) {
      const LowRankOperator<double> f(view(problem.query, 300, 3), view(problem.key, 260, 3),
                                      view(problem.value, 260, 5), problem.polynomial,
                                      problem.scale, {problem.scale, is_causal, mask}, {2});
      CHECK(f.is_sound());
      const auto x = random_numbers<double>(260 * 3, 5, 1), z = random_numbers<double>(900, 6, 1);
      std::vector<double> fx(900), fz(260 * 3);
      f.multiply(false, {x.data(), 3}, {fx.data(), 3}, 3);
      f.multiply(true, {z.data(), 3}, {fz.data(), 3}, 3);
      double left = 0, right = 0, size = 0;
      for (std::size_t i = 0; i < fx.size(); ++i) left += fx[i] * z[i];
      for (std::size_t i = 0; i < fz.size(); ++i) right += fz[i] * x[i];
      for (std::size_t i = 0; i < fx.size(); ++i) size += std::abs(fx[i] * z[i]);
      CHECK_NEAR(left, right, 1e-13 * size);
      CHECK(std::abs(left) > 1e-6 * size);
    }
  std::reverse(start.begin(), start.end());
  const auto make = [&](const Mask& mask) {
    return LowRankOperator<double>(view(problem.query, 300, 3), view(problem.key, 260, 3),
                                   view(problem.value, 260, 5), problem.polynomial, problem.scale,
                                   {problem.scale, false, mask}, {2});
  };
  CHECK_THROWS(make(masks::RowWindow{start, stop}), Unsupported, "expected both ends to rise");
  CHECK_THROWS(make(masks::RowChange{}), Unsupported, "mask is a RowChange");
}

TEST(wrong_polynomials_are_refused) {
  Problem<float> problem(4, 4, 2, 2);
  problem.polynomial.exact_rows = {2, 2};
  CHECK_THROWS(problem.run(), InvalidArgument, "expected rising numbers below 4");
  problem.polynomial.exact_rows = {};
  problem.polynomial.centre = {1};
  CHECK_THROWS(problem.run(), InvalidArgument, "polynomials holds a centre of 1 numbers");
  problem.polynomial.coefficients = {};
  CHECK_THROWS(problem.run(), InvalidArgument, "without coefficients");
  CHECK(problem.out[0] == 7);
}
