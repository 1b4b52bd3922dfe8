// Columns chosen one by one between two moving barriers: Batson, Spielman and Srivastava,
// Twice-Ramanujan sparsifiers, 2012, with the constants of arXiv 2304.04397. A step needs the
// column of the largest slack, a quadratic form v^T M v with a matrix that changes a little in
// every step. So all columns are looked at from time to time only, and in between those that were
// best then. Any column with a slack of 0 or more keeps the promise, so a stale list costs nothing
// but a little quality; when it has none left, all are looked at again.

#include "cpu/barriers.h"

#include <cmath>
#include <numeric>

#include "convbasis/error.h"
#include "core/thread_pool.h"

namespace convbasis {
namespace {

/// Columns kept between looks at all, and steps until the next look, both per unit of rank. With
/// these the same columns are chosen as by a look at all in every step, or nearly the same.
constexpr index_t kListedPerRank = 4, kRankPerSteps = 8;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

double trace(const Dense& matrix) {
  double sum = 0;
  for (index_t i = 0; i < matrix.rows(); ++i) sum += matrix(i, i);
  return sum;
}

/// v^T M v and |M v|^2.
struct Form {
  Form(const Dense& matrix, const std::vector<double>& v) {
    for (index_t i = 0; i < matrix.rows(); ++i) {
      double sum = 0;
      for (index_t j = 0; j < matrix.columns(); ++j) sum += matrix(i, j) * v[at(j)];
      form += v[at(i)] * sum;
      square += sum * sum;
    }
  }
  double form = 0, square = 0;
};

/// The columns, whitened, that had the largest forms when all were looked at last.
class Candidates {
 public:
  Candidates(const Columns& x, const Dense& white, const Exec& exec)
      : x_(x),
        white_(white),
        transposed_(transposed(white)),
        exec_(exec),
        size_(kListedPerRank * white.rows()),
        period_(std::max<index_t>(white.rows() / kRankPerSteps, 1)),
        is_all_(size_ >= count_of(x)) {
    if (!is_all_) return;
    listed_.resize(at(count_of(x)));
    std::iota(listed_.begin(), listed_.end(), index_t{0});
    take();
  }

  /// Finds the one with the largest form: its column, and it whitened.
  index_t largest(const Dense& matrix, std::vector<double>& whitened) {
    if (left_ == 0 && !is_all_) refresh(matrix);
    std::vector<double> forms = quadratic_forms(vectors_.view(), matrix, exec_);
    auto best = std::max_element(forms.begin(), forms.end());
    if (*best < 0 && left_ < period_ && !is_all_) {
      refresh(matrix);
      forms = quadratic_forms(vectors_.view(), matrix, exec_);
      best = std::max_element(forms.begin(), forms.end());
    }
    --left_;
    const index_t place = best - forms.begin();
    for (index_t i = 0; i < vectors_.rows(); ++i) whitened[at(i)] = vectors_(i, place);
    return listed_[at(place)];
  }

 private:
  void refresh(const Dense& matrix) {
    const Dense form = product(product(transposed_, matrix, exec_), white_, exec_);
    const std::vector<double> forms = quadratic_forms(x_, form, exec_);
    listed_.resize(forms.size());
    std::iota(listed_.begin(), listed_.end(), index_t{0});
    std::nth_element(
        listed_.begin(), listed_.begin() + size_, listed_.end(), [&](index_t a, index_t b) {
          return forms[at(a)] > forms[at(b)] || (forms[at(a)] == forms[at(b)] && a < b);
        });
    listed_.resize(at(size_));
    std::sort(listed_.begin(), listed_.end());
    take();
    left_ = period_;
  }

  void take() { vectors_ = product(white_, take_columns(x_, listed_, exec_), exec_); }

  const Columns& x_;
  const Dense& white_;
  Dense transposed_, vectors_;
  const Exec& exec_;
  index_t size_, period_, left_ = 0;  // steps until all are looked at again
  bool is_all_;
  std::vector<index_t> listed_;
};

}  // namespace

bool BarrierInverses::form(const Dense& matrix, double low, double high, const Exec& exec) {
  const index_t k = matrix.rows();
  bool between[2] = {};
  parallel_for(exec, 2, [&](index_t side, int) {
    const double sign = side == 0 ? 1 : -1, barrier = side == 0 ? low : high;
    Dense &inverse = side == 0 ? below : above,
          &squared = side == 0 ? below_squared : above_squared;
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j < k; ++j)
        inverse(i, j) = sign * (matrix(i, j) - (i == j ? barrier : 0.0));
    between[side] = blas::invert_positive_definite(k, {inverse.data(), k});
    blas::multiply<double>(k, k, k, 1.0, {inverse.data(), k}, {inverse.data(), k}, 0.0,
                           {squared.data(), k});
  });
  return between[0] && between[1];
}

double barrier_epsilon(index_t rank, index_t num_columns) {
  const auto k = static_cast<double>(rank), m = static_cast<double>(num_columns);
  return 2 * std::sqrt(m * k) / (m + k);
}

index_t barrier_columns(index_t rank, double epsilon) {
  const double root = (1 + std::sqrt(1 - epsilon * epsilon)) / epsilon;
  const double columns = std::ceil(root * root * static_cast<double>(rank));
  constexpr double kMost = 9e15;  // beyond any d, and exact
  return std::max(static_cast<index_t>(std::min(columns, kMost)), rank + 1);
}

std::vector<double> barrier_sample(const Columns& x, const Dense& white, index_t num_columns,
                                   const SparsifyOptions::Progress& progress, const Exec& exec) {
  const index_t k = white.rows();
  const auto rank = static_cast<double>(k);
  const double root = std::sqrt(static_cast<double>(num_columns) / rank);
  const double step_high = (root + 1) / (root - 1);
  double low = -rank * root, high = rank * (root * root + root) / (root - 1);
  double potential_low = rank / -low, potential_high = rank / high;
  Candidates candidates(x, white, exec);
  std::vector<double> squares(at(count_of(x)), 0.0), v(at(k));
  Dense total(k, k, 0.0), slack(k, k);
  BarrierInverses at_barriers(k);
  for (index_t step = 0; step < num_columns; ++step) {
    low += 1.0;
    high += step_high;
    if (!at_barriers.form(total, low, high, exec))
      throw BackendError("[sparsify_features] x leaves the barriers after " + std::to_string(step) +
                         " columns; expected rounding to leave room between them; got rank " +
                         std::to_string(k));
    const double rise = trace(at_barriers.below) - potential_low;
    const double fall = potential_high - trace(at_barriers.above);
    for (index_t i = 0; i < k * k; ++i)
      slack.data()[i] = at_barriers.below_squared.data()[i] / rise - at_barriers.below.data()[i] -
                        (at_barriers.above_squared.data()[i] / fall + at_barriers.above.data()[i]);
    const index_t best = candidates.largest(slack, v);
    const Form below(at_barriers.below, v), above(at_barriers.above, v);
    const double square =
        2.0 / (below.square / rise - below.form + above.square / fall + above.form);
    squares[at(best)] += square;
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j < k; ++j) total(i, j) += square * (v[at(i)] * v[at(j)]);
    // The potentials of the new total, by the formula of Sherman and Morrison.
    potential_low = trace(at_barriers.below) - below.square / (1.0 / square + below.form);
    potential_high = trace(at_barriers.above) + above.square / (1.0 / square - above.form);
    if (progress) progress(step + 1, num_columns);
  }
  const std::vector<double> values = symmetric_eigen(total);
  for (double& square : squares)
    square *= 2.0 / (values.front() + values.back());  // as far above 1 as below
  return squares;
}

}  // namespace convbasis
