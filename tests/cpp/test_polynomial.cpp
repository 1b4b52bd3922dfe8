#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "convbasis/error.h"
#include "convbasis/polynomial.h"

using namespace convbasis;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kFloatUnit = std::numeric_limits<float>::epsilon() / 2;

/// Largest relative error on a fine grid, in long double.
double error_on_grid(const std::vector<double>& coefficients, double radius) {
  long double worst = 0;
  for (int k = 0; k <= 3000; ++k) {
    const long double x = static_cast<long double>(radius) * (k / 1500.0L - 1);
    long double value = 0;
    for (auto c = coefficients.rbegin(); c != coefficients.rend(); ++c) value = value * x + *c;
    worst = std::max(worst, std::abs(value * std::exp(-x) - 1));
  }
  return static_cast<double>(worst);
}

}  // namespace

TEST(polynomial_of_degree_zero_is_known) {
  // The best constant is 1 / cosh(R), with the error tanh(R).
  for (const double radius : {0.1, 1.0, 3.0}) {
    const ExpPolynomial p = exp_polynomial(0, radius);
    CHECK_NEAR(p.coefficients[0], 1 / std::cosh(radius), 1e-12);
    CHECK_NEAR(p.epsilon, std::tanh(radius), 0.006 * std::tanh(radius));
  }
}

TEST(polynomial_epsilon_is_a_bound_and_a_close_one) {
  for (const double radius : {1e-300, 1e-8, 1e-3, 0.1, 0.7, 1.0, 2.0, 4.0, 6.0, 8.0})
    for (index_t degree = 0; degree <= 16; ++degree) {
      const ExpPolynomial p = exp_polynomial(degree, radius);
      const double error = error_on_grid(p.coefficients, radius);
      const double floor = 50 * std::exp(2 * radius) * 1.2e-16 * (static_cast<double>(degree) + 1);
      CHECK(error <= p.epsilon);
      CHECK(p.epsilon <= 1.01 * error + floor);
      CHECK(p.coefficients.size() == static_cast<std::size_t>(degree) + 1);
    }
}

TEST(polynomial_epsilon_is_a_bound_where_rounding_rules) {
  for (const double radius : {10.0, 17.0, 25.0, 40.0})
    for (const index_t degree : {0, 3, 11, 26, 40}) {
      const ExpPolynomial p = exp_polynomial(degree, radius);
      CHECK(error_on_grid(p.coefficients, radius) <= p.epsilon);
    }
  CHECK(polynomial_error(std::vector<double>{1e308, 1e308}, 40) == kInfinity);
}

TEST(polynomial_of_an_interval_of_nothing_is_one) {
  CHECK((exp_polynomial(2, 0).coefficients == std::vector<double>{1, 0, 0}));
  CHECK(exp_polynomial(2, 0).epsilon == 0);
}

TEST(polynomial_error_of_any_polynomial) {
  // 1 + x on [-1, 1]: worst at -1, where it is 0.
  CHECK_NEAR(polynomial_error(std::vector<double>{1, 1}, 1), 1.0, 0.006);
  CHECK_NEAR(polynomial_error(std::vector<double>{2, 0}, 0), 1.0, 0.006);
}

TEST(polynomial_degree_is_the_least) {
  const double epsilons[] = {0.1, 0.01, 0.001, 1e-6};
  const std::vector<std::pair<double, std::vector<index_t>>> table{
      {0.1, {0, 1, 2, 3}}, {0.5, {1, 2, 3, 5}},  {1.0, {2, 3, 4, 7}},
      {2.0, {3, 5, 6, 9}}, {4.0, {6, 7, 9, 13}}, {0.0, {0, 0, 0, 0}}};
  for (const auto& [radius, degrees] : table)
    for (std::size_t e = 0; e < 4; ++e) CHECK(polynomial_degree(epsilons[e], radius) == degrees[e]);
  CHECK(!polynomial_degree(0.1, 20.0));
  CHECK(!polynomial_degree(0.1, kInfinity));
  CHECK(!polynomial_degree(1e-18, 1.0));
}

TEST(polynomial_degree_counts_rounding) {
  CHECK(polynomial_degree(1e-3, 2.0, kFloatUnit) == 6);
  CHECK(!polynomial_degree(1e-3, 4.0, kFloatUnit));  // cancellation costs exp(8) roundings
  CHECK(polynomial_degree(1e-3, 4.0, kFloatUnit, true) == 9);
  CHECK(!polynomial_degree(1e-6, 1.0, kFloatUnit, true));
}

TEST(polynomial_rounding_covers_sums_in_float) {
  for (const double radius : {0.5, 1.0, 2.0, 4.0}) {
    const ExpPolynomial p = exp_polynomial(9, radius);
    const double bound = polynomial_rounding(p.coefficients, radius, kFloatUnit);
    double worst = 0;
    for (int k = 0; k <= 400; ++k) {
      const float x = static_cast<float>(radius * (k / 200.0 - 1));
      float sum = 0, power = 1;
      double exact = 0, exact_power = 1;
      for (const double c : p.coefficients) {
        sum += static_cast<float>(c) * power;
        power *= x;
        exact += c * exact_power;
        exact_power *= static_cast<double>(x);
      }
      worst = std::max(worst, std::abs(static_cast<double>(sum) - exact) / exact);
    }
    CHECK(worst <= bound);
    CHECK(worst > bound / 3000);
  }
  CHECK(polynomial_rounding(std::vector<double>{0, 1}, 1, kFloatUnit) == kInfinity);
}

TEST(feature_counts_do_not_overflow) {
  CHECK(feature_count(16, 4) == 4845);
  CHECK(feature_count(64, 6) == 131115985);
  CHECK(feature_count(0, 7) == 1 && feature_count(7, 0) == 1);
  CHECK(feature_count(33, 33) == 7219428434016265740);
  CHECK(feature_count(34, 34) == std::numeric_limits<index_t>::max());
  CHECK(feature_count(std::numeric_limits<index_t>::max(), 40) ==
        std::numeric_limits<index_t>::max());
}

TEST(polynomial_arguments_are_checked) {
  CHECK_THROWS(exp_polynomial(-1, 1), InvalidArgument, "degree is -1; expected 0 <= degree <= 40");
  CHECK_THROWS(exp_polynomial(41, 1), InvalidArgument, "degree is 41");
  CHECK_THROWS(exp_polynomial(2, -1), InvalidArgument, "radius is -1");
  CHECK_THROWS(exp_polynomial(2, 41), InvalidArgument, "radius is 41");
  CHECK_THROWS(exp_polynomial(2, std::nan("")), InvalidArgument, "radius is nan");
  CHECK_THROWS(polynomial_error({}, 1), InvalidArgument, "coefficients are none");
  CHECK_THROWS(polynomial_degree(0, 1), InvalidArgument, "epsilon is 0");
  CHECK_THROWS(polynomial_rounding(std::vector<double>{1}, 1, 1), InvalidArgument, "unit is 1");
  CHECK_THROWS(feature_count(-1, 2), InvalidArgument, "head_dim and degree are -1 and 2");
}
