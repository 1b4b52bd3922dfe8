#pragma once

#include <span>
#include <vector>

#include "convbasis/cost_model.h"
#include "convbasis/types.h"

namespace convbasis {

/// Nanoseconds of one thread that polynomial attention is weighed by.
struct PolynomialRates {
  double exact;    ///< a multiply-add of exact attention, its exponentials included
  double feature;  ///< a multiply-add of products with features
};

/// Rates by a cost model: a multiply-add with features, their forming and packing included, takes
/// about 2.2 direct steps (measured at n = 32,768 with 8 and 64 channels).
[[nodiscard]] PolynomialRates polynomial_rates(const CostModel& model);

/// What is weighed.
struct PolynomialProblem {
  index_t head_dim = 0, value_dim = 0;
  double visible_share = 1;  ///< of all pairs of query and key: about 1/2 when causal
  double epsilon = 1e-3;     ///< largest relative error of a weight, rounding included
  double unit = 0;           ///< of rounding, see polynomial_degree; 0 = not counted
  bool mean_zero = false;    ///< see polynomial_degree
};

/// Rows and columns of the attention matrix to take exactly, and the polynomial for the rest.
struct PolynomialPlan {
  std::vector<index_t> exact_rows, exact_columns;  ///< in rising order
  double radius = 0;           ///< no other logit is larger; radius and epsilon of a plan without a
  index_t degree = -1;         ///< polynomial, whose degree is -1, are 0: everything is exact
  double epsilon = 0;          ///< error of the polynomial alone
  double cost_polynomial = 0;  ///< nanoseconds of this plan, its exact part included
  double cost_exact = 0;       ///< nanoseconds of exact attention
};

/// The largest radius at which each degree 0, 1, ... stays within epsilon, to one part in a
/// thousand; it ends where more features than `most_features` would be needed. For several plans of
/// the same epsilon, of which it takes most of the time: some milliseconds.
[[nodiscard]] std::vector<double> degree_radii(const PolynomialProblem& problem,
                                               index_t most_features);

/// The cheapest choice, by norms of scaled queries and centred keys (see logit_norms): for each
/// degree, queries longer than some a and keys longer than radius / a are taken exactly. Polynomial
/// attention takes (value_dim + 2) multiply-adds for each feature of each query and key, exact
/// attention head_dim + value_dim for each visible pair, twice that in listed rows and columns.
/// `radii` is that of degree_radii, or empty. O((n_q + n_kv) (log(n_q + n_kv) + degrees)). Keys
/// taken exactly no longer count for the mean: logit_norms with left_out centres the others anew,
/// on which mean_zero relies. Idea: Support Basis (arXiv 2510.01643).
[[nodiscard]] PolynomialPlan plan_polynomial(std::span<const double> query_norms,
                                             std::span<const double> key_norms,
                                             const PolynomialProblem& problem,
                                             const PolynomialRates& rates,
                                             std::span<const double> radii = {});

}  // namespace convbasis
