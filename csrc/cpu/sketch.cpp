#include "cpu/sketch.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "core/thread_pool.h"
#include "cpu/leverage.h"

namespace convbasis {
namespace {

/// No score is above so many times its guess.
constexpr double kCover = 4.0;

constexpr index_t kBlock = 256;  ///< columns of a matrix product

constexpr index_t kListed = 4096;  ///< columns whose exact scores are formed together

/// An entry of a sparse column meets its row of the projection in about this many multiply-adds of
/// a matrix product, each.
constexpr double kScatter = 4.0;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Rows of the projection that keep all of d squared lengths above 1 / kCover of themselves, but
/// for a probability of delta: chi-squared of t degrees is below c t with probability at most
/// exp(t (1 - c + log c) / 2).
index_t projection_rows(index_t d, double delta) {
  const double exponent = (std::log(kCover) - 1 + 1 / kCover) / 2;
  const double least = std::max(delta, std::numeric_limits<double>::min());  // may have underflowed
  const double wanted = std::log(static_cast<double>(d)) - std::log(least);
  return static_cast<index_t>(std::ceil(wanted / exponent));
}

/// Standard normal numbers over the square root of their number of rows.
Dense projection(index_t rows, index_t columns, const SparsifyOptions::Uniforms& uniforms) {
  Dense normal(rows, columns);
  const index_t pairs = ceil_div(rows * columns, 2);
  std::vector<double> numbers(at(2 * pairs));
  uniforms(numbers);
  for (index_t p = 0; p < pairs; ++p) {
    const double size = std::sqrt(-2 * std::log1p(-numbers[at(2 * p)]) / static_cast<double>(rows));
    const double angle = 2 * std::numbers::pi * numbers[at(2 * p + 1)];
    normal.data()[2 * p] = size * std::cos(angle);
    if (2 * p + 1 < rows * columns) normal.data()[2 * p + 1] = size * std::sin(angle);
  }
  return normal;
}

/// Squared lengths of the projected columns [first, last): matrix (t, n), or its transpose.
void block_lengths(const View<const double, 2>& x, const Dense& matrix, const Dense&, index_t first,
                   index_t last, double* lengths) {
  const index_t rows = matrix.rows(), count = last - first;
  Dense projected(rows, count);
  blas::multiply<double>(rows, count, matrix.columns(), 1.0, {matrix.data(), matrix.columns()},
                         {x.data + first, x.strides[0]}, 0.0, {projected.data(), count});
  for (index_t r = 0; r < rows; ++r)
    for (index_t j = 0; j < count; ++j) lengths[j] += projected(r, j) * projected(r, j);
}

void block_lengths(const SparseColumns& x, const Dense&, const Dense& transpose, index_t first,
                   index_t last, double* lengths) {
  const index_t rows = transpose.columns();
  Buffer<double> projected(rows);
  for (index_t j = first; j < last; ++j) {
    std::fill_n(projected.data(), rows, 0.0);
    for (index_t a = x.starts[at(j)]; a < x.starts[at(j + 1)]; ++a) {
      const double value = x.values[at(a)], *from = transpose.row(x.rows[at(a)]);
      for (index_t r = 0; r < rows; ++r) projected[r] += value * from[r];
    }
    for (index_t r = 0; r < rows; ++r) lengths[j - first] += projected[r] * projected[r];
  }
}

std::vector<double> projected_lengths(const Columns& x, const Dense& matrix, const Exec& exec) {
  const index_t d = count_of(x);
  const Dense transpose = transposed(matrix);
  std::vector<double> lengths(at(d), 0.0);
  std::visit(
      [&](const auto& kind) {
        parallel_for(exec, ceil_div(d, kBlock), [&](index_t block, int) {
          const index_t first = block * kBlock, last = std::min(first + kBlock, d);
          block_lengths(kind, matrix, transpose, first, last, lengths.data() + first);
        });
      },
      x);
  return lengths;
}

/// Exact scores, formed where they are asked for.
class Scores {
 public:
  Scores(const Columns& x, const Dense& white, const Exec& exec)
      : x_(x),
        form_(product(transposed(white), white, exec)),
        known_(at(count_of(x)), -1.0),
        exec_(exec) {}

  /// Forms those of the listed columns.
  void look_at(std::vector<index_t> listed) {
    std::sort(listed.begin(), listed.end());
    listed.erase(std::unique(listed.begin(), listed.end()), listed.end());
    std::erase_if(listed, [&](index_t j) { return known_[at(j)] >= 0; });
    for (std::size_t first = 0; first < listed.size(); first += kListed) {
      const auto part =
          std::span(listed).subspan(first, std::min(at(kListed), listed.size() - first));
      const Dense columns = take_columns(x_, part, exec_);
      const std::vector<double> forms = quadratic_forms(columns.view(), form_, exec_);
      for (std::size_t i = 0; i < part.size(); ++i) known_[at(part[i])] = std::max(forms[i], 0.0);
    }
  }
  double operator[](index_t j) const { return known_[at(j)]; }

 private:
  const Columns& x_;
  Dense form_;
  std::vector<double> known_;  ///< -1 where it is not
  const Exec& exec_;
};

}  // namespace

double cost_of_sketch(const Columns& x, index_t num_columns, double delta) {
  const auto n = static_cast<double>(rows_of(x));
  const double entry = std::holds_alternative<SparseColumns>(x) ? kScatter : 1.0;
  const auto rows = static_cast<double>(projection_rows(count_of(x), delta * kSketchShare));
  // Exact scores of those that are likely to be kept, and of those that are drawn.
  const double looked_at = 2 * kCover * static_cast<double>(num_columns);
  return entry * rows * static_cast<double>(entries_of(x)) + looked_at * n * n;
}

std::vector<double> sketched_sample(const Columns& x, const Dense& white, index_t num_columns,
                                    double delta, const SparsifyOptions::Uniforms& uniforms,
                                    const Exec& exec) {
  const index_t d = count_of(x), rank = white.rows();
  const Dense matrix = product(projection(projection_rows(d, delta), rank, uniforms), white, exec);
  std::vector<double> guesses = projected_lengths(x, matrix, exec);
  for (double& guess : guesses) guess *= kCover;
  Scores scores(x, white, exec);

  std::vector<index_t> likely;
  const auto sum = static_cast<double>(rank);  // of all scores
  for (index_t j = 0; j < d; ++j)
    if (is_kept(guesses[at(j)], sum, num_columns)) likely.push_back(j);
  scores.look_at(likely);
  std::vector<double> squares(at(d), 0.0);
  index_t draws = num_columns;
  double rest = sum;
  for (const index_t j : likely)
    if (is_kept(scores[j], sum, num_columns)) {
      squares[at(j)] = 1.0;
      guesses[at(j)] = 0.0;
      rest -= scores[j];
      --draws;
    }
  const Lottery lottery(guesses);
  // Guesses cover scores: below this they are rounding, and so is what `rest` has left for them.
  constexpr double kRounding = 1e-9;
  if (draws <= 0 || std::min(lottery.total(), rest) <= kRounding * sum) return squares;

  const auto all_draws = static_cast<double>(draws);
  while (draws > 0) {
    const index_t tries = static_cast<index_t>(kCover * static_cast<double>(draws)) + 16;
    std::vector<double> numbers(at(2 * tries));
    uniforms(numbers);
    std::vector<index_t> drawn(at(tries));
    for (index_t i = 0; i < tries; ++i) drawn[at(i)] = lottery.draw(numbers[at(2 * i)]);
    scores.look_at(drawn);
    for (index_t i = 0; i < tries && draws > 0; ++i) {
      const index_t j = drawn[at(i)];
      if (numbers[at(2 * i + 1)] * guesses[at(j)] >= scores[j]) continue;
      squares[at(j)] += rest / (all_draws * scores[j]);
      --draws;
    }
  }
  return squares;
}

}  // namespace convbasis
