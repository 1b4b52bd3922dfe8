// Columns drawn with probabilities proportional to their leverage scores. The numbers are those of
// the matrix Chernoff bounds: Tropp, User-friendly tail bounds for sums of random matrices, 2012,
// theorem 1.1. Terms of norm at most k / m whose mean is I leave [1 - epsilon, 1 + epsilon] with a
// probability of at most 2 k exp(-m h(epsilon) / k).

#include "cpu/leverage.h"

#include <cmath>
#include <numeric>

namespace convbasis {
namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// h, the exponent of the upper tail, the weaker one.
double tail_exponent(double epsilon) { return (1 + epsilon) * std::log1p(epsilon) - epsilon; }

/// The exponent with which all directions hold.
double wanted_exponent(index_t rank, double delta) {
  const auto k = static_cast<double>(rank);
  return k * std::log(2 * k / delta);
}

}  // namespace

index_t leverage_columns(index_t rank, double epsilon, double delta) {
  if (rank == 0) return 1;
  const double columns = std::ceil(wanted_exponent(rank, delta) / tail_exponent(epsilon));
  constexpr double kMost = 9e15;  // beyond any d, and exact
  return std::max(static_cast<index_t>(std::min(columns, kMost)), rank);
}

double leverage_epsilon(index_t rank, index_t num_columns, double delta) {
  const double wanted = wanted_exponent(rank, delta) / static_cast<double>(num_columns);
  double low = 0, high = 1;
  while (tail_exponent(high) < wanted) high *= 2;
  for (int step = 0; step < 60; ++step) {
    const double middle = (low + high) / 2;
    (tail_exponent(middle) < wanted ? low : high) = middle;
  }
  return high;
}

Lottery::Lottery(std::vector<double> weights) : sums_(std::move(weights)) {
  std::partial_sum(sums_.begin(), sums_.end(), sums_.begin());
}

index_t Lottery::draw(double uniform) const {
  // A product that is rounded up to the total belongs to the last weight that is not 0.
  const double place = std::min(uniform * total(), std::nextafter(total(), 0.0));
  return std::upper_bound(sums_.begin(), sums_.end(), place) - sums_.begin();
}

std::vector<double> leverage_sample(std::span<const double> scores, index_t num_columns,
                                    const SparsifyOptions::Uniforms& uniforms) {
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  std::vector<double> squares(scores.size(), 0.0), rest(scores.begin(), scores.end());
  index_t draws = num_columns;
  for (std::size_t j = 0; j < scores.size(); ++j)
    if (is_kept(scores[j], sum, num_columns)) {
      squares[j] = 1.0;
      rest[j] = 0.0;
      --draws;
    }
  const Lottery lottery(rest);
  if (draws <= 0 || !(lottery.total() > 0)) return squares;
  std::vector<double> numbers(at(draws));
  uniforms(numbers);
  for (const double number : numbers) {
    const index_t drawn = lottery.draw(number);
    squares[at(drawn)] += lottery.total() / (static_cast<double>(draws) * rest[at(drawn)]);
  }
  return squares;
}

}  // namespace convbasis
