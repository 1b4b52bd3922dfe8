#pragma once

#include <optional>
#include <span>
#include <vector>

#include "convbasis/types.h"

/// Polynomials that stand for the exponential in attention, on |x| <= radius. Their error is
/// relative to exp(x), because softmax divides by a sum of exponentials: it is the error of the
/// weights. Source: Alman and Song (arXiv 2302.13214).
namespace convbasis {

/// The highest degree that is looked at.
inline constexpr index_t kMostDegree = 40;

/// The widest interval. Powers in double lose exp(2 radius) roundings: all digits from 17 on.
inline constexpr double kMostRadius = 40;

/// The widest one that polynomials of a tolerance are looked for on: exp(2 R) roundings of double
/// are a tenth there.
inline constexpr double kWidestRadius = 17.5;

struct ExpPolynomial {
  std::vector<double> coefficients;  ///< constant first, degree + 1 of them
  double radius = 0;
  double epsilon = 0;  ///< |P(x) / exp(x) - 1| is at most this on the whole interval
};

/// The polynomial of least relative error, to one part in a thousand but for rounding in double: up
/// to degree 20 some hundred times exp(2 radius) 2^-53, while for higher ones and a radius of 9 or
/// more it may end the Remez exchange early. epsilon is certified in any case: a bound, 0.2 % above
/// the error, with what rounding in double may do to the sum of powers.
/// Throws InvalidArgument unless 0 <= degree <= kMostDegree and 0 <= radius <= kMostRadius.
[[nodiscard]] ExpPolynomial exp_polynomial(index_t degree, double radius);

/// A bound, 0.2 % above the largest |P(x) / exp(x) - 1| for |x| <= radius, of any polynomial.
[[nodiscard]] double polynomial_error(std::span<const double> coefficients, double radius);

/// What rounding does to weights sum_p c_p (q . k)^p that are summed through features, relative to
/// the weights; `unit` is half the distance from 1 to the next number (2^-24 for float).
///
/// The features' products have the absolute sum sum_p |c_p| (|q| |k|)^p, at most sum_p |c_p| R^p
/// when |q| |k| <= R, as a certified radius has it. Each product meets at most 2 (degree + 2)
/// roundings: powers, weights, coefficient and scale of both sides. The sums over features and
/// keys, of either sign and in blocks, are given the same again, which is an estimate. Weights of
/// size exp(-R) suffer most, hence the division by the least P on the interval. Outputs divide by
/// the mean weight of a row: `least_mean`, where it is known, takes the place of the least P. It is
/// 1 - epsilon when rows see all keys and these have mean 0 (mean exp(x) >= exp(mean x)).
/// Infinity when P is not positive.
[[nodiscard]] double polynomial_rounding(std::span<const double> coefficients, double radius,
                                         double unit, double least_mean = 0);

/// epsilon, and for a `unit` above 0 rounding with it: what a weight may err by. mean_zero: rows
/// see all keys, which have mean 0, see polynomial_rounding.
[[nodiscard]] double total_error(const ExpPolynomial& polynomial, double unit, bool mean_zero);

/// A lower bound of the error of every polynomial of the degree, at a tenth of the cost.
[[nodiscard]] double exp_error_bound(index_t degree, double radius);

/// The least degree whose error, and rounding for a `unit` above 0, stay within epsilon; empty when
/// there is none. mean_zero: rows see all keys, which have mean 0, see polynomial_rounding. Any
/// radius >= 0, infinity included.
[[nodiscard]] std::optional<index_t> polynomial_degree(double epsilon, double radius,
                                                       double unit = 0, bool mean_zero = false);

/// C(head_dim + degree, degree), the monomials of degree at most `degree` in head_dim variables;
/// the largest number when it is beyond that.
[[nodiscard]] index_t feature_count(index_t head_dim, index_t degree);

}  // namespace convbasis
