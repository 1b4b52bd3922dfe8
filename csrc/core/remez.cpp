#include "core/remez.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <span>
#include <tuple>

namespace convbasis {
namespace {

/// Polynomials are written in t = x / radius and, between steps, in Chebyshev polynomials of t:
/// powers lose digits that the exchange needs.
using Numbers = std::vector<double>;

constexpr std::size_t kGridPerExtremum = 16;
constexpr int kMostExchanges = 20;
constexpr double kFirstWidth = 4, kWidthStep = 2;
constexpr double kSettled = 1e-4;  ///< growth of the levelled error at which the exchange ends

double angle(std::size_t k, std::size_t count) {
  return std::numbers::pi * static_cast<double>(k) / static_cast<double>(count);
}

/// The points, in rising order, where a Chebyshev polynomial of degree + 1 is largest.
Numbers chebyshev_extrema(std::size_t degree) {
  Numbers points(degree + 2);
  for (std::size_t i = 0; i < points.size(); ++i) points[i] = -std::cos(angle(i, degree + 1));
  return points;
}

/// The solution of a square system by elimination; rows are (coefficients, right side).
Numbers solve(std::vector<Numbers> rows) {
  const std::size_t count = rows.size();
  for (std::size_t column = 0; column < count; ++column) {
    const auto pivot = std::max_element(rows.begin() + static_cast<index_t>(column), rows.end(),
                                        [&](const Numbers& a, const Numbers& b) {
                                          return std::abs(a[column]) < std::abs(b[column]);
                                        });
    std::swap(rows[column], *pivot);
    for (std::size_t i = column + 1; i < count; ++i) {
      const double factor = rows[i][column] / rows[column][column];
      for (std::size_t j = column; j <= count; ++j) rows[i][j] -= factor * rows[column][j];
    }
  }
  Numbers solution(count);
  for (std::size_t i = count; i-- > 0;) {
    double rest = rows[i][count];
    for (std::size_t j = i + 1; j < count; ++j) rest -= rows[i][j] * solution[j];
    solution[i] = rest / rows[i][i];
  }
  return solution;
}

/// The polynomial, by Chebyshev polynomials, whose relative error is the same but for alternating
/// signs at degree + 2 points. No polynomial of the degree has a smaller error on all of them.
struct Levelled {
  Numbers series;
  double error = 0;
};

Levelled level(const Numbers& points, double radius) {
  const std::size_t count = points.size();
  std::vector<Numbers> rows(count, Numbers(count + 1, 1.0));
  for (std::size_t i = 0; i < count; ++i) {
    // The weight in every row keeps the digits of small exponentials.
    const double weight = std::exp(-radius * points[i]);
    for (std::size_t j = 0; j + 1 < count; ++j) {
      const double two_before = j > 1 ? rows[i][j - 2] : 0;
      rows[i][j] = j == 0   ? weight
                   : j == 1 ? weight * points[i]
                            : 2 * points[i] * rows[i][j - 1] - two_before;
    }
    rows[i][count - 1] = i % 2 == 0 ? 1 : -1;
  }
  Levelled result{solve(std::move(rows)), 0};
  result.error = std::abs(result.series.back());
  result.series.pop_back();
  return result;
}

/// Clenshaw's sum.
double sum(const Numbers& series, double t) {
  double one = 0, two = 0;
  for (std::size_t j = series.size(); j-- > 1;) {
    const double next = series[j] + 2 * t * one - two;
    two = one;
    one = next;
  }
  return series[0] + t * one - two;
}

struct Extrema {
  Numbers points;
  double largest = 0;  ///< relative error on the grid
};

/// Where the relative error is largest between two changes of its sign: on a grid, moved to the top
/// of the parabola through three values.
Extrema extrema(const Numbers& series, double radius) {
  const std::size_t intervals = kGridPerExtremum * (series.size() + 1);
  Numbers errors(intervals + 1);
  Extrema found;
  for (std::size_t k = 0; k <= intervals; ++k) {
    const double t = -std::cos(angle(k, intervals));
    errors[k] = sum(series, t) * std::exp(-radius * t) - 1;
    found.largest = std::max(std::abs(errors[k]), found.largest);
  }
  for (std::size_t first = 0, last = 0; first <= intervals; first = last) {
    std::size_t top = first;
    for (; last <= intervals && (errors[last] < 0) == (errors[first] < 0); ++last)
      if (std::abs(errors[last]) > std::abs(errors[top])) top = last;
    double shift = 0;
    if (top > 0 && top < intervals) {
      const double bend = errors[top - 1] - 2 * errors[top] + errors[top + 1];
      if (bend != 0)
        shift = std::clamp((errors[top - 1] - errors[top + 1]) / (2 * bend), -0.5, 0.5);
    }
    found.points.push_back(-std::cos(angle(top, intervals) + shift * angle(1, intervals)));
  }
  return found;
}

/// From Chebyshev polynomials of x / radius to powers of x. Powers of a small x would make large
/// what is rounding alone: it is left out.
Numbers to_powers(const Numbers& series, double radius) {
  const std::size_t count = series.size();
  const double noise =
      radius < 1 ? static_cast<double>(4 * count) * std::numeric_limits<double>::epsilon() : 0;
  Numbers result(count, 0.0), now(count, 0.0), before(count, 0.0);
  now[0] = 1;
  for (std::size_t j = 0; j < count; ++j) {
    for (std::size_t p = 0; p <= j && std::abs(series[j]) > noise; ++p)
      result[p] += series[j] * now[p];
    Numbers next(count, 0.0);  // T_{j+1} = 2 t T_j - T_{j-1}; T_1 = t
    for (std::size_t p = 0; p < count; ++p)
      next[p] = (p > 0 ? (j > 0 ? 2 : 1) * now[p - 1] : 0.0) - before[p];
    before = std::move(now);
    now = std::move(next);
  }
  double power = 1;
  for (double& coefficient : result) {
    if (coefficient != 0) coefficient /= power;
    power *= radius;
  }
  return result;
}

/// The best polynomial that the exchange meets, started at `points`, which become those it ended
/// at.
Numbers exchange(Numbers& points, double radius) {
  Levelled levelled = level(points, radius);
  Numbers best = levelled.series;
  double least = std::numeric_limits<double>::infinity();
  bool is_settled = false;
  for (int step = 0;; ++step) {
    auto [next, largest] = extrema(levelled.series, radius);
    // Where rounding outweighs the levelled error, points coincide and the next one may be far off.
    if (largest < least) {
      least = largest;
      best = levelled.series;
    }
    if (is_settled || step == kMostExchanges || next.size() != points.size() ||
        !std::is_sorted(next.begin(), next.end(), std::less_equal{}))
      return best;
    const double before = levelled.error;
    points = std::move(next);
    levelled = level(points, radius);
    is_settled = levelled.error <= before * (1 + kSettled);
  }
}

}  // namespace

std::vector<double> least_error_polynomial(index_t degree, double radius) {
  if (radius == 0) {
    Numbers one(static_cast<std::size_t>(degree) + 1, 0.0);
    one[0] = 1;
    return one;
  }
  // The points of a wide interval are far from Chebyshev's: those of narrower ones lead to them.
  Numbers points = chebyshev_extrema(static_cast<std::size_t>(degree));
  for (double width = kFirstWidth; width < radius; width += kWidthStep)
    std::ignore = exchange(points, width);
  return to_powers(exchange(points, radius), radius);
}

double least_error_bound(index_t degree, double radius) {
  if (radius == 0) return 0;
  const double error = level(chebyshev_extrema(static_cast<std::size_t>(degree)), radius).error;
  // What rounding may have added to it.
  return error - 16 * std::numeric_limits<double>::epsilon();
}

}  // namespace convbasis
