#pragma once

#include "cpu/columns.h"

namespace convbasis {

/// Columns that bring epsilon with probability 1 - delta.
[[nodiscard]] index_t leverage_columns(index_t rank, double epsilon, double delta);

/// What a number of columns brings with probability 1 - delta: the bound, inverted.
[[nodiscard]] double leverage_epsilon(index_t rank, index_t num_columns, double delta);

/// Squares of the weights of all columns, from their leverage scores; most are 0.
[[nodiscard]] std::vector<double> leverage_sample(std::span<const double> scores,
                                                  index_t num_columns,
                                                  const SparsifyOptions::Uniforms& uniforms);

/// A column with this score would be drawn once or more on average, of `num_columns` draws from
/// scores of this sum: it is kept for certain, with weight 1. Its term then does not vary, and
/// those of the others are no larger than in plain sampling: the bounds hold, and no direction is
/// lost that only one column has.
[[nodiscard]] inline bool is_kept(double score, double sum, index_t num_columns) {
  constexpr double kRounded = 1 - 1e-9;  // a score of 1 may be rounded down
  return score > 0 && score * static_cast<double>(num_columns) >= kRounded * sum;
}

/// Draws indices with probabilities proportional to weights.
class Lottery {
 public:
  explicit Lottery(std::vector<double> weights);
  [[nodiscard]] double total() const { return sums_.empty() ? 0.0 : sums_.back(); }
  [[nodiscard]] index_t draw(double uniform) const;

 private:
  std::vector<double> sums_;
};

}  // namespace convbasis
