#pragma once

#include <span>
#include <vector>

#include "cpu/rows.h"
#include "cpu/strips.h"

namespace convbasis {

/// Listed rows summed one by one from the logits of the strips, with a softmax of their own: O(n d)
/// a row. Row rows[r] goes to row r of out, its lse to lse[r] (or nowhere).
template <class T>
void attend_strips(const StripMatrix<T>& lower, const StripMatrix<T>* upper, Rows<const T> value,
                   index_t channels, std::span<const index_t> rows, Rows<T> out, double* lse,
                   const Exec& exec);

/// Estimated absolute errors that products leave in the rows of each block of a half.
struct BlockRounding {
  int shift = 0;  // row i is in block i >> shift
  std::vector<double> errors;
};

/// One triangle of the attention matrix of one head: logits and, after exp, weights.
template <class T>
struct Half {
  StripMatrix<T> logits;
  StripWeights<T> weights;
  Schedule schedule;
  Buffer<T> memory;
  Rows<T> numerator;
  Buffer<double> row_sums;
};

/// Attention of one head through its strips: both halves, the division, and the rows that rounding
/// spoiled. What it leaves behind is what the backward pass starts from.
template <class T>
class HeadForward {
 public:
  HeadForward(const StripMatrix<T>& lower, const StripMatrix<T>* upper,
              const View<const T, 2>& value, const CostModel& model, const Exec& exec);

  void run(const View<T, 2>& out, const View<T, 1>& lse);
  /// Spoils further rows: those whose weights products would round too coarsely in other matrices
  /// than the values too, and in the blocks of `other` if it is not null.
  void judge_products(const Schedule* other);

  [[nodiscard]] const Schedule& schedule() const { return halves_[0].schedule; }
  /// The lower triangle; after it, if there is one, the upper one with both axes reversed.
  [[nodiscard]] const std::vector<Half<T>>& halves() const { return halves_; }
  [[nodiscard]] const ValueRows<T>& values() const { return values_; }
  [[nodiscard]] index_t channels() const { return channels_; }
  /// Rows whose sums the fast path could not give, increasing, and their lse.
  [[nodiscard]] const std::vector<index_t>& spoiled() const { return spoiled_; }
  [[nodiscard]] const std::vector<double>& spoiled_lse() const { return spoiled_lse_; }
  /// 1 / (sum of the weights of row i); 0 for a row that is spoiled or sees nothing.
  [[nodiscard]] Buffer<double> inverse_sums() const;

  StageSeconds seconds;
  index_t rows_exact = 0;
  double rounding_bound = 0;

 private:
  void find_steady_loss(const Schedule* other);
  void find_peaks();
  [[nodiscard]] std::vector<BlockRounding> estimate_rounding(const Schedule* other,
                                                             std::span<const double> norms) const;
  [[nodiscard]] double relative_rounding(index_t i, const std::vector<BlockRounding>& rounding,
                                         double peak, double size) const;
  [[nodiscard]] double row_sum(index_t i) const;
  void divide(const View<T, 2>& out, const View<T, 1>& lse);
  void sum_spoiled_rows(const View<T, 2>& out, const View<T, 1>& lse);

  View<const T, 2> value_;
  CostModel model_;
  Exec exec_;
  index_t rows_, channels_;
  Buffer<T> value_copy_;
  ValueRows<T> values_;
  std::vector<T> peaks_;       // largest |value| that each row sees
  std::vector<double> sizes_;  // root mean square of each row's output
  double steady_loss_ = 0;     // relative, of sums over columns and pieces
  T shift_ = 0;
  std::vector<Half<T>> halves_;
  std::vector<index_t> spoiled_;
  std::vector<double> spoiled_lse_;
};

}  // namespace convbasis
