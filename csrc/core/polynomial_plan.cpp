#include "convbasis/polynomial_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "convbasis/polynomial.h"
#include "core/shape.h"

namespace convbasis {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNarrowest = 1e-6;  ///< the least radius that is looked at
constexpr double kPrecision = 1e-3;  ///< of degree_radii

void require_problem(const char* function, const PolynomialProblem& problem) {
  require(problem.head_dim > 0 && problem.value_dim > 0, function,
          "problem has head_dim " + std::to_string(problem.head_dim) + " and value_dim " +
              std::to_string(problem.value_dim) + "; expected at least 1");
  require(problem.epsilon > 0, function,
          "problem has epsilon " + std::to_string(problem.epsilon) + "; expected above 0");
  require(
      problem.visible_share >= 0 && problem.visible_share <= 1, function,
      "problem has visible_share " + std::to_string(problem.visible_share) + "; expected 0 to 1");
}

bool fits(const PolynomialProblem& problem, index_t degree, double radius) {
  if (exp_error_bound(degree, radius) > problem.epsilon) return false;
  const ExpPolynomial p = exp_polynomial(degree, radius);
  return total_error(p, problem.unit, problem.mean_zero) <= problem.epsilon;
}

/// Costs of one head, by how much is taken exactly.
struct Costs {
  double queries, keys, pair, feature_row;

  /// With so many rows and columns left to the polynomial. Listed rows and columns are gathered.
  [[nodiscard]] double of(double rows, double columns, double features) const {
    constexpr double kGathered = 2;
    return kGathered * pair * (queries * keys - rows * columns) +
           feature_row * features * (rows + columns);
  }
  [[nodiscard]] double of_all_exact() const { return pair * queries * keys; }
};

struct Choice {
  double cost = kInfinity, longest_query = -1, longest_key = -1;
};

/// The best limits of the lengths for one radius. Both lists rise.
Choice best_limits(std::span<const double> queries, std::span<const double> keys, double radius,
                   double features, const Costs& costs) {
  Choice best;
  std::size_t columns = keys.size();
  for (std::size_t i = 0; i < queries.size(); ++i) {
    if (i + 1 < queries.size() && queries[i + 1] == queries[i]) continue;
    // A key without a bound is never left to the polynomial, not even for a query of 0.
    const double limit = queries[i] > 0 ? radius / queries[i] : std::numeric_limits<double>::max();
    while (columns > 0 && !(keys[columns - 1] <= limit)) --columns;
    if (columns == 0) break;
    const double cost =
        costs.of(static_cast<double>(i + 1), static_cast<double>(columns), features);
    if (cost < best.cost) best = {cost, queries[i], keys[columns - 1]};
  }
  return best;
}

std::vector<double> sorted(std::span<const double> values) {
  std::vector<double> result(values.begin(), values.end());
  std::sort(result.begin(), result.end());
  return result;
}

std::vector<index_t> longer(std::span<const double> norms, double limit) {
  std::vector<index_t> result;
  for (std::size_t i = 0; i < norms.size(); ++i)
    if (!(norms[i] <= limit)) result.push_back(static_cast<index_t>(i));
  return result;
}

/// From so many features on no choice of rows and columns is cheaper than exact attention.
index_t most_useful_features(const Costs& costs) {
  const double most = costs.of_all_exact() / (costs.feature_row * (costs.queries + costs.keys));
  return std::isfinite(most) ? static_cast<index_t>(std::min(most, 1e15)) : 0;
}

}  // namespace

PolynomialRates polynomial_rates(const CostModel& model) {
  constexpr double kFeature = 2.2;
  return {model.exact, kFeature * model.direct};
}

std::vector<double> degree_radii(const PolynomialProblem& problem, index_t most_features) {
  require_problem("degree_radii", problem);
  std::vector<double> radii;
  for (index_t degree = 0; degree <= kMostDegree; ++degree) {
    if (feature_count(problem.head_dim, degree) > most_features) break;
    double low = radii.empty() ? 0 : radii.back(), high = kWidestRadius;
    if (low == 0 && fits(problem, degree, kNarrowest)) low = kNarrowest;
    if (low == 0 || !fits(problem, degree, low)) {  // rounding grows with the degree
      radii.push_back(low == 0 ? 0 : radii.back());
      continue;
    }
    while (high > low * (1 + kPrecision)) {
      const double middle = std::sqrt(low * high);
      (fits(problem, degree, middle) ? low : high) = middle;
    }
    radii.push_back(low);
  }
  return radii;
}

PolynomialPlan plan_polynomial(std::span<const double> query_norms,
                               std::span<const double> key_norms, const PolynomialProblem& problem,
                               const PolynomialRates& rates, std::span<const double> radii) {
  constexpr const char* kName = "plan_polynomial";
  require_problem(kName, problem);
  require(
      rates.exact > 0 && rates.feature > 0 && rates.exact < kInfinity && rates.feature < kInfinity,
      kName, "rates are not positive and finite; expected nanoseconds");
  const auto queries = static_cast<double>(query_norms.size());
  const auto keys = static_cast<double>(key_norms.size());
  const Costs costs{queries, keys,
                    rates.exact * problem.visible_share *
                        static_cast<double>(problem.head_dim + problem.value_dim),
                    rates.feature * static_cast<double>(problem.value_dim + 2)};
  PolynomialPlan plan;
  plan.cost_exact = plan.cost_polynomial = costs.of_all_exact();

  std::vector<double> own;
  if (radii.empty()) {
    own = degree_radii(problem, most_useful_features(costs));
    radii = own;
  }
  const std::vector<double> sorted_queries = sorted(query_norms), sorted_keys = sorted(key_norms);
  Choice best{plan.cost_exact, -1, -1};
  for (std::size_t degree = 0; degree < radii.size(); ++degree) {
    const auto features =
        static_cast<double>(feature_count(problem.head_dim, static_cast<index_t>(degree)));
    const Choice choice = best_limits(sorted_queries, sorted_keys, radii[degree], features, costs);
    if (choice.cost >= best.cost) continue;
    best = choice;
    plan.degree = static_cast<index_t>(degree);
  }
  if (plan.degree >= 0) {
    plan.radius = std::min(best.longest_query * best.longest_key,
                           radii[static_cast<std::size_t>(plan.degree)]);
    plan.epsilon = exp_polynomial(plan.degree, plan.radius).epsilon;
    plan.cost_polynomial = best.cost;
  }
  plan.exact_rows = longer(query_norms, best.longest_query);
  plan.exact_columns = longer(key_norms, best.longest_key);
  return plan;
}

}  // namespace convbasis
