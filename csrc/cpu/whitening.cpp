#include "cpu/whitening.h"

#include <cmath>
#include <limits>

#include "core/thread_pool.h"

namespace convbasis {
namespace {

/// Singular values up to this share of the largest count as zero, once rows have norm 1. They are
/// roots of eigenvalues of X X^T, whose own noise is near 1e-16 of the largest.
constexpr double kRankTolerance = 1e-6;

/// The larger one, and NaN once there is any.
double worst(double a, double b) { return b > a || std::isnan(b) ? b : a; }

/// One row of logits as logarithms of its softmax.
void to_log_softmax(double* row, index_t n) {
  const double largest = *std::max_element(row, row + n);
  double sum = 0;
  for (index_t j = 0; j < n; ++j) sum += std::exp(row[j] - largest);
  const double shift = std::log(sum);
  for (index_t j = 0; j < n; ++j) row[j] = row[j] - largest - shift;
}

/// What one row of the logits adds to the largest of all.
struct RowChange {
  double radius = 0, deviation = 0, error = 0, trivial_error = 0;
};

RowChange row_change(const double* gram, const double* few, index_t n, double factor) {
  RowChange change;
  Dense logits(2, n);
  double *old = logits.row(0), *now = logits.row(1);
  for (index_t j = 0; j < n; ++j) {
    old[j] = gram[j] / factor / factor;
    now[j] = few[j] / factor / factor;
    change.radius = worst(change.radius, std::abs(old[j]));
    change.deviation = worst(change.deviation, std::abs(now[j] - old[j]));
  }
  to_log_softmax(old, n);
  to_log_softmax(now, n);
  const double mean = -std::log(static_cast<double>(n));
  for (index_t j = 0; j < n; ++j) {
    change.error = worst(change.error, std::abs(std::expm1(now[j] - old[j])));
    change.trivial_error = worst(change.trivial_error, std::abs(std::expm1(mean - old[j])));
  }
  return change;
}

}  // namespace

/// Rows are brought to norm 1 first: the promise does not depend on their sizes, and the smaller
/// ones would drown in the rounding of the larger.
Dense whitening(const Dense& gram) {
  const index_t n = gram.rows();
  std::vector<double> norms(static_cast<std::size_t>(n));
  const auto norm = [&](index_t i) { return norms[static_cast<std::size_t>(i)]; };
  for (index_t i = 0; i < n; ++i)
    norms[static_cast<std::size_t>(i)] = gram(i, i) > 0 ? std::sqrt(gram(i, i)) : 1.0;
  Dense vectors(n, n);
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < n; ++j) vectors(i, j) = gram(i, j) / norm(j) / norm(i);
  const std::vector<double> values = symmetric_eigen(vectors);
  const double least = kRankTolerance * kRankTolerance * values.back();
  const auto first = std::upper_bound(values.begin(), values.end(), std::max(least, 0.0));
  const auto skipped = static_cast<index_t>(first - values.begin());
  Dense white(n - skipped, n);
  for (index_t r = 0; r < white.rows(); ++r)
    for (index_t i = 0; i < n; ++i)
      white(r, i) = vectors(skipped + r, i) /
                    std::sqrt(values[static_cast<std::size_t>(skipped + r)]) / norm(i);
  return white;
}

void measure(const Dense& features, const Dense& white, const Dense& gram, double factor,
             Sparsified& result, const Exec& exec) {
  const index_t n = gram.rows();
  double low = 1.0, high = 1.0;
  if (white.rows() > 0) {
    const Dense whitened = product(white, features, exec);
    Dense against = gram_matrix(whitened.view(), exec);
    const std::vector<double> values = symmetric_eigen(against);
    low = std::max(values.front(), 0.0);
    high = std::max(values.back(), 0.0);
  }
  result.epsilon = std::max({1.0 - low, high - 1.0, 0.0});
  result.condition_number = low > 0 ? high / low : std::numeric_limits<double>::infinity();

  const Dense few = gram_matrix(features.view(), exec);
  std::vector<RowChange> rows(static_cast<std::size_t>(n));
  parallel_for(exec, n, [&](index_t i, int) {
    rows[static_cast<std::size_t>(i)] = row_change(gram.row(i), few.row(i), n, factor);
  });
  for (const RowChange& row : rows) {
    result.radius = worst(result.radius, row.radius);
    result.logit_deviation = worst(result.logit_deviation, row.deviation);
    result.error = worst(result.error, row.error);
    result.trivial_error = worst(result.trivial_error, row.trivial_error);
  }
  result.error_bound =
      std::expm1(2 * std::max(result.epsilon * result.radius, result.logit_deviation));
}

}  // namespace convbasis
