#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/error.h"
#include "convbasis/logit_range.h"

using namespace convbasis;

namespace {

/// Two query heads that share one key head.
template <class T>
struct Problem {
  Problem(index_t queries, index_t keys, index_t dim, unsigned seed = 1)
      : n(queries), m(keys), d(dim), query(at(2 * n * d)), key(at(m * d)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (T& x : query) x = static_cast<T>(normal(random));
    for (T& x : key) x = static_cast<T>(3 + normal(random));
  }
  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] View<const T, 4> q() const {
    return contiguous_view<const T, 4>(query.data(), {1, 2, n, d});
  }
  [[nodiscard]] View<const T, 4> k() const {
    return contiguous_view<const T, 4>(key.data(), {1, 1, m, d});
  }
  [[nodiscard]] LogitNorms<T> norms(const AttentionOptions& options = {}, int threads = 2) const {
    return logit_norms<T>(q(), k(), options, {}, {threads});
  }
  /// The largest |scale q . (k - centre)| of a head in long double.
  [[nodiscard]] long double dense(index_t h, const LogitNorms<T>& norms, double scale,
                                  bool is_causal = false) const {
    long double worst = 0;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < (is_causal ? std::min(i + 1, m) : m); ++j) {
        long double dot = 0;
        for (index_t c = 0; c < d; ++c)
          dot += static_cast<long double>(query[at((h * n + i) * d + c)]) *
                 (static_cast<long double>(key[at(j * d + c)]) -
                  static_cast<long double>(norms.centre[at(c)]));
        worst = std::max(worst, std::abs(static_cast<long double>(scale) * dot));
      }
    return worst;
  }
  index_t n, m, d;
  std::vector<T> query, key;
};

template <class T>
void check_bounds(const Problem<T>& problem, double scale = 0.3) {
  for (const bool is_causal : {false, true}) {
    const AttentionOptions options{scale, is_causal, {}};
    const LogitNorms<T> norms = problem.norms(options);
    const std::vector<double> sampled =
        sampled_radius<T>(problem.q(), problem.k(), norms, 3, options);
    for (index_t h = 0; h < 2; ++h) {
      const long double dense = problem.dense(h, norms, scale, is_causal);
      const auto i = static_cast<std::size_t>(h);
      CHECK(dense <= norms.radius[i]);
      CHECK(sampled[i] <= dense);
      CHECK(problem.n > 3 || is_causal || sampled[i] >= dense * (1 - 1e-9L));
    }
  }
}

template <class T>
void check_type() {
  for (const index_t n : {1, 2, 3, 17, 65})
    for (const index_t m : {1, 2, 16, 70})
      for (const index_t d : {1, 2, 5, 33}) check_bounds(Problem<T>(n, m, d));
  Problem<T> huge_key(40, 40, 8);
  for (index_t c = 0; c < 8; ++c) huge_key.key[Problem<T>::at(7 * 8 + c)] = T(1e30);
  check_bounds(huge_key);
  check_bounds(huge_key, -2.0);
  for (T& x : huge_key.query) x *= T(1e30);
  check_bounds(huge_key);
  Problem<T> tiny(20, 30, 4);
  for (T& x : tiny.key) x *= std::numeric_limits<T>::denorm_min() * 8;
  for (T& x : tiny.query) x *= T(1e-30);
  check_bounds(tiny);
  Problem<T> parallel(3, 2, 1);  // Cauchy-Schwarz is tight
  check_bounds(parallel);
}

}  // namespace

TEST(logit_range_bounds_dense_logits) {
  check_type<float>();
  check_type<double>();
}

TEST(logit_range_is_that_of_cauchy_and_schwarz) {
  const Problem<double> problem(50, 60, 6);
  const LogitNorms<double> norms = problem.norms({0.5, false, {}});
  for (index_t c = 0; c < 6; ++c) {
    double mean = 0;
    for (index_t j = 0; j < 60; ++j) mean += problem.key[problem.at(j * 6 + c)] / 60;
    CHECK_NEAR(norms.centre[problem.at(c)], mean, 1e-13);
  }
  double longest_key = 0;
  for (const double norm : norms.key) longest_key = std::max(longest_key, norm);
  for (index_t h = 0; h < 2; ++h) {
    double longest = 0;
    for (index_t i = 0; i < 50; ++i) {
      double square = 0;
      for (index_t c = 0; c < 6; ++c)
        square += std::pow(problem.query[problem.at((h * 50 + i) * 6 + c)], 2);
      CHECK_NEAR(norms.query[problem.at(h * 50 + i)], 0.5 * std::sqrt(square), 1e-13);
      longest = std::max(longest, 0.5 * std::sqrt(square));
    }
    CHECK_NEAR(norms.radius[problem.at(h)], longest * longest_key, 1e-12);
  }
}

TEST(logit_range_of_equal_keys_or_no_scale_is_nothing) {
  Problem<float> equal(10, 12, 3);
  for (std::size_t i = 0; i < equal.key.size(); ++i)
    equal.key[i] = static_cast<float>(i % 3) + 0.5f;
  CHECK(equal.norms().radius[0] == 0);
  const Problem<float> problem(10, 12, 3);
  CHECK(problem.norms({0.0, false, {}}).radius[1] == 0);
  CHECK(problem.norms({-0.5, false, {}}).radius == problem.norms({0.5, false, {}}).radius);
  CHECK((Problem<float>(0, 3, 2).norms().radius == std::vector<double>{0, 0}));
  CHECK((Problem<float>(3, 0, 2).norms().radius == std::vector<double>{0, 0}));
}

TEST(logit_range_looks_at_visible_keys_only) {
  Problem<double> problem(5, 9, 2);
  const AttentionOptions causal{0.5, true, {}};
  const LogitNorms<double> before = problem.norms(causal);
  problem.key[2 * 5] = 1e9;  // key 5: the last query sees keys 0..4
  CHECK(problem.norms(causal).radius == before.radius);
  CHECK(problem.norms(causal).centre == before.centre);
  CHECK(problem.norms().radius[0] > 1e6);
}

TEST(logit_range_leaves_out_keys_that_are_exact) {
  Problem<double> problem(5, 9, 2);
  problem.key[2 * 3] = 1e9;
  bool left_out[9] = {};
  left_out[3] = true;
  const LogitNorms<double> norms = logit_norms<double>(
      problem.q(), problem.k(), {}, contiguous_view<const bool, 3>(left_out, {1, 1, 9}));
  CHECK(norms.radius[0] < 100);
  CHECK(norms.centre[0] < 10);
  CHECK(norms.key[3] > 1e8);
}

TEST(logit_range_of_huge_numbers_does_not_wrap) {
  Problem<double> problem(4, 4, 3);
  for (double& x : problem.key) x *= 1e307;
  for (double& x : problem.query) x *= 1e307;
  CHECK(problem.norms().radius[0] == std::numeric_limits<double>::infinity());
  CHECK(std::isfinite(problem.norms().centre[0]));
}

TEST(logit_range_does_not_depend_on_threads) {
  const Problem<float> problem(3000, 5000, 7);
  const LogitNorms<float> one = problem.norms({}, 1), five = problem.norms({}, 5);
  CHECK(one.radius == five.radius && one.centre == five.centre && one.key == five.key);
}

TEST(logit_range_arguments_are_checked) {
  const Problem<double> problem(4, 4, 3), other(4, 4, 2);
  const auto call = [&](View<const double, 4> q, View<const double, 4> k) {
    return logit_norms<double>(q, k);
  };
  CHECK_THROWS(call(problem.q(), other.k()), InvalidArgument, "key has shape (1, 1, 4, 2)");
  CHECK_THROWS(sampled_radius<double>(problem.q(), problem.k(), problem.norms(), -1),
               InvalidArgument, "rows is -1");
  CHECK_THROWS(sampled_radius<double>(problem.q(), problem.k(), other.norms(), 1), InvalidArgument,
               "norms are of other arrays");
  const bool none = false;
  CHECK_THROWS(logit_norms<double>(problem.q(), problem.k(), {},
                                   contiguous_view<const bool, 3>(&none, {1, 1, 1})),
               InvalidArgument, "left_out has shape (1, 1, 1)");
}
