#include "convbasis/polynomial.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <string>

#include "core/remez.h"
#include "core/shape.h"

namespace convbasis {
namespace {

constexpr double kUnit = std::numeric_limits<double>::epsilon() / 2;
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void require_radius(const char* function, double radius, double largest) {
  require(radius >= 0 && radius <= largest, function,
          "radius is " + std::to_string(radius) +
              "; expected 0 <= radius <= " + std::to_string(largest));
}

void require_degree(const char* function, index_t degree) {
  require(degree >= 0 && degree <= kMostDegree, function,
          "degree is " + std::to_string(degree) +
              "; expected 0 <= degree <= " + std::to_string(kMostDegree));
}

void require_coefficients(const char* function, std::span<const double> coefficients) {
  require(!coefficients.empty(), function, "coefficients are none; expected degree + 1 numbers");
}

/// sum_p c_p x^p, and the same of the absolute values.
struct Values {
  double value = 0, absolute = 0;
};
Values evaluate(std::span<const double> coefficients, double x) {
  Values sums;
  for (auto c = coefficients.rbegin(); c != coefficients.rend(); ++c) {
    sums.value = sums.value * x + *c;
    sums.absolute = sums.absolute * std::abs(x) + std::abs(*c);
  }
  return sums;
}

}  // namespace

double polynomial_error(std::span<const double> coefficients, double radius) {
  constexpr const char* kName = "polynomial_error";
  require_coefficients(kName, coefficients);
  require_radius(kName, radius, kMostRadius);
  const auto degree = static_cast<index_t>(coefficients.size()) - 1;

  // exp(-x) is a polynomial of degree m but for a remainder: its Chebyshev coefficients are
  // 2 I_k(R) <= 2 (R/2)^k / k! cosh(R), which halve at least from one to the next from k = R on.
  double remainder = 4 * std::cosh(radius) * evaluate(coefficients, radius).absolute;
  index_t m = 0;
  for (; static_cast<double>(m) + 2 < radius || !(remainder <= kUnit / 4); ++m) {
    remainder *= radius / 2 / static_cast<double>(m + 1);
    if (!(remainder <= kLargest)) return kInfinity;
  }

  // A polynomial of degree M is at most 1 / cos(pi M / 2N) times its largest value at the N + 1
  // extrema of a Chebyshev polynomial (Ehlich and Zeller, 1964).
  constexpr index_t kRatio = 32;
  const index_t points = kRatio * (degree + m + 1);
  const double beyond = 1 / std::cos(std::numbers::pi / (2 * kRatio));
  const double roundings = 4 * (static_cast<double>(degree) + 3 + radius) * kUnit;
  double largest = 0;
  for (index_t k = 0; k <= points; ++k) {
    const double x =
        radius * std::cos(std::numbers::pi * static_cast<double>(k) / static_cast<double>(points));
    const Values p = evaluate(coefficients, x);
    const double inverse = std::exp(-x);
    const double error = std::abs(p.value * inverse - 1) + roundings * p.absolute * inverse;
    if (!(error <= kLargest)) return kInfinity;
    largest = std::max(largest, error);
  }
  return beyond * largest + 3 * remainder;
}

ExpPolynomial exp_polynomial(index_t degree, double radius) {
  constexpr const char* kName = "exp_polynomial";
  require_degree(kName, degree);
  require_radius(kName, radius, kMostRadius);
  ExpPolynomial result{least_error_polynomial(degree, radius), radius, 0};
  if (radius > 0) result.epsilon = polynomial_error(result.coefficients, radius);
  return result;
}

double exp_error_bound(index_t degree, double radius) {
  constexpr const char* kName = "exp_error_bound";
  require_degree(kName, degree);
  require_radius(kName, radius, kMostRadius);
  return least_error_bound(degree, radius);
}

double polynomial_rounding(std::span<const double> coefficients, double radius, double unit,
                           double least_mean) {
  constexpr const char* kName = "polynomial_rounding";
  require_coefficients(kName, coefficients);
  require_radius(kName, radius, kMostRadius);
  require(unit >= 0 && unit < 1, kName,
          "unit is " + std::to_string(unit) + "; expected 0 <= unit < 1");
  const auto terms = static_cast<double>(coefficients.size());
  double least = least_mean;
  if (!(least > 0)) {
    // P follows exp: it is least near -R, and where it is not it is far from its bound.
    const index_t points = 16 * static_cast<index_t>(terms);
    least = kInfinity;
    for (index_t k = 0; k <= points; ++k)
      least = std::min(
          least, evaluate(coefficients,
                          radius * (2 * static_cast<double>(k) / static_cast<double>(points) - 1))
                     .value);
  }
  if (!(least > 0)) return kInfinity;
  return 4 * (terms + 1) * unit * evaluate(coefficients, radius).absolute / least;
}

double total_error(const ExpPolynomial& polynomial, double unit, bool mean_zero) {
  if (unit == 0) return polynomial.epsilon;
  return polynomial.epsilon + polynomial_rounding(polynomial.coefficients, polynomial.radius, unit,
                                                  mean_zero ? 1 - polynomial.epsilon : 0.0);
}

std::optional<index_t> polynomial_degree(double epsilon, double radius, double unit,
                                         bool mean_zero) {
  constexpr const char* kName = "polynomial_degree";
  require(epsilon > 0, kName,
          "epsilon is " + std::to_string(epsilon) + "; expected a number above 0");
  require_radius(kName, radius, kInfinity);
  if (radius > kWidestRadius) return {};
  for (index_t degree = 0; degree <= kMostDegree; ++degree) {
    if (exp_error_bound(degree, radius) > epsilon) continue;
    const ExpPolynomial p = exp_polynomial(degree, radius);
    const double total = total_error(p, unit, mean_zero);
    if (total <= epsilon) return degree;
    if (p.epsilon <= epsilon / 2 && total - p.epsilon > epsilon)
      return {};  // it grows with the degree
  }
  return {};
}

index_t feature_count(index_t head_dim, index_t degree) {
  require(head_dim >= 0 && degree >= 0, "feature_count",
          "head_dim and degree are " + std::to_string(head_dim) + " and " + std::to_string(degree) +
              "; expected at least 0");
  constexpr index_t kMost = std::numeric_limits<index_t>::max();
  const index_t fewer = std::min(head_dim, degree), more = std::max(head_dim, degree);
  index_t count = 1;
  for (index_t i = 1; i <= fewer; ++i) {
    if (more > kMost - i) return kMost;
    // count (more + i) / i without the product: i divides what is left of it.
    const index_t common = std::gcd(count, i);
    const index_t factor = (more + i) / (i / common);
    count /= common;
    if (count > kMost / factor) return kMost;
    count *= factor;
  }
  return count;
}

}  // namespace convbasis
