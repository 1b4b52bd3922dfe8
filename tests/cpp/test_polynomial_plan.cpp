#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/error.h"
#include "convbasis/polynomial.h"
#include "convbasis/polynomial_plan.h"

using namespace convbasis;

namespace {

using Numbers = std::vector<double>;
constexpr PolynomialRates kRates{1, 1};

Numbers random_norms(index_t count, double size, unsigned seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> lengths(0, 1);
  Numbers norms(static_cast<std::size_t>(count));
  for (double& norm : norms) norm = size * lengths(random);
  return norms;
}

std::size_t within(const Numbers& norms, double limit) {
  return static_cast<std::size_t>(
      std::count_if(norms.begin(), norms.end(), [&](double norm) { return norm <= limit; }));
}

/// The cheapest of all limits and degrees, tried one by one.
double least_cost(const Numbers& queries, const Numbers& keys, const PolynomialProblem& problem,
                  const Numbers& radii) {
  const double pair =
      problem.visible_share * static_cast<double>(problem.head_dim + problem.value_dim);
  const auto all = static_cast<double>(queries.size() * keys.size());
  double best = pair * all;
  for (std::size_t g = 0; g < radii.size(); ++g)
    for (const double limit : queries) {
      const auto rows = static_cast<double>(within(queries, limit));
      const auto columns = static_cast<double>(within(keys, radii[g] / limit));
      if (columns == 0) continue;
      const auto features =
          static_cast<double>(feature_count(problem.head_dim, static_cast<index_t>(g)));
      best = std::min(best,
                      2 * pair * (all - rows * columns) +  // listed ones are gathered
                          static_cast<double>(problem.value_dim + 2) * features * (rows + columns));
    }
  return best;
}

}  // namespace

TEST(plan_is_the_cheapest_of_all) {
  for (const double size : {0.05, 0.3, 1.0, 3.0})
    for (const double epsilon : {0.1, 1e-3}) {
      const PolynomialProblem problem{4, 6, 0.7, epsilon};
      const Numbers queries = random_norms(300, size, 1), keys = random_norms(400, 1, 2);
      const Numbers radii = degree_radii(problem, 5000);
      const PolynomialPlan plan = plan_polynomial(queries, keys, problem, kRates, radii);
      const double best = least_cost(queries, keys, problem, radii);
      CHECK_NEAR(plan.cost_polynomial, best, 1e-9 * best);
      // What it says of itself holds.
      double largest = 0;
      for (std::size_t i = 0; i < queries.size(); ++i)
        for (std::size_t j = 0; j < keys.size(); ++j)
          if (!std::binary_search(plan.exact_rows.begin(), plan.exact_rows.end(),
                                  static_cast<index_t>(i)) &&
              !std::binary_search(plan.exact_columns.begin(), plan.exact_columns.end(),
                                  static_cast<index_t>(j)))
            largest = std::max(largest, queries[i] * keys[j]);
      CHECK(largest <= plan.radius * (1 + 1e-12));
      CHECK(plan.epsilon <= epsilon * 1.0001);
      if (plan.degree >= 0) CHECK(plan.cost_polynomial < plan.cost_exact);
      CHECK_NEAR(plan.cost_exact, 0.7 * 10 * 300 * 400, 1e-6);
      CHECK(plan_polynomial(queries, keys, problem, kRates).cost_polynomial <=
            plan.cost_polynomial * (1 + 1e-12));
    }
}

TEST(plan_is_exact_where_entries_are_large) {
  const Numbers long_ones(100, 10.0);
  const PolynomialPlan plan = plan_polynomial(long_ones, long_ones, {8, 8}, kRates);
  CHECK(plan.degree == -1 && plan.exact_rows.size() == 100 && plan.exact_columns.size() == 100);
  CHECK(plan.cost_polynomial == plan.cost_exact && plan.radius == 0);
}

TEST(plan_takes_the_odd_large_key_exactly) {
  Numbers queries(2000, 0.5), keys(2000, 0.5);
  keys[17] = 1e30;
  queries[3] = std::numeric_limits<double>::infinity();
  const PolynomialPlan plan = plan_polynomial(queries, keys, {4, 4}, kRates);
  CHECK(plan.exact_columns == std::vector<index_t>{17});
  CHECK(plan.exact_rows == std::vector<index_t>{3});
  CHECK(plan.degree == 2 || plan.degree == 3);
  CHECK_NEAR(plan.radius, 0.25, 1e-12);
}

TEST(plan_of_zeros_needs_one_feature) {
  const PolynomialPlan plan = plan_polynomial(Numbers(50, 0.0), Numbers(50, 3.0), {4, 4}, kRates);
  CHECK(plan.degree == 0 && plan.radius == 0 && plan.epsilon == 0);
  CHECK(plan_polynomial({}, {}, {4, 4}, kRates).cost_polynomial == 0);
}

TEST(degree_radii_are_where_the_degree_changes) {
  for (const double unit : {0.0, 6e-8}) {
    const PolynomialProblem problem{3, 3, 1, 1e-3, unit, true};
    const Numbers radii = degree_radii(problem, 1000);
    for (std::size_t g = 0; g < radii.size(); ++g) {
      if (g > 0) CHECK(radii[g] >= radii[g - 1]);
      CHECK(polynomial_degree(1e-3, radii[g], unit, true).value_or(kMostDegree) <=
            static_cast<index_t>(g));
    }
    CHECK(polynomial_degree(1e-3, radii[4] * 1.005, unit, true) == 5);
    CHECK(feature_count(3, static_cast<index_t>(radii.size())) > 1000);
  }
}

TEST(plan_arguments_are_checked) {
  const Numbers one(1, 1.0);
  CHECK_THROWS(plan_polynomial(one, one, {0, 4}, kRates), InvalidArgument, "head_dim 0");
  CHECK_THROWS(plan_polynomial(one, one, {4, 4, 1, 0}, kRates), InvalidArgument, "epsilon 0");
  CHECK_THROWS(plan_polynomial(one, one, {4, 4, 2}, kRates), InvalidArgument, "visible_share 2");
  CHECK_THROWS(plan_polynomial(one, one, {4, 4}, {0, 1}), InvalidArgument, "rates are not");
}
