#pragma once

#include "cpu/head_forward.h"
#include "cpu/operator.h"

namespace convbasis {

/// The softmax matrix D^-1 A of a head whose forward pass has run, which has to outlive it. Rows
/// that rounding spoiled, and those that see nothing, are 0. Blocks of `near` rows and columns on
/// the diagonal of each half are near; 0: none.
template <class T>
class StripOperator final : public AttentionOperator<T> {
 public:
  using typename AttentionOperator<T>::Columns;

  StripOperator(const HeadForward<T>& head, index_t near, const Exec& exec);

  [[nodiscard]] index_t rows() const override { return layout().rows; }
  [[nodiscard]] index_t columns() const override { return layout().columns; }
  void multiply(bool transpose, Rows<const T> x, Rows<T> y, index_t channels) const override;
  [[nodiscard]] Columns near_columns(index_t row) const override;
  void near_entries(index_t row, index_t first, index_t last, T* out) const override;
  [[nodiscard]] bool has_far() const override { return near_ == 0 || near_ < rows(); }
  [[nodiscard]] std::unique_ptr<PreparedProduct<T>> far(bool transpose) const override;

 private:
  [[nodiscard]] const StripLayout& layout() const { return halves_.front().weights.matrix.layout; }
  void scale_rows(Rows<const T> from, Rows<T> to, index_t channels) const;
  class Far;

  const std::vector<Half<T>>& halves_;
  index_t near_;
  Buffer<double> inverse_sums_;
  Exec exec_;
};

/// The blocks of the far products, whose diagonal is near: for HeadForward::judge_products.
[[nodiscard]] Schedule far_schedule(index_t rows, index_t near);

/// Rows of the near blocks with which attention_gradient is expected to be the fastest: a power of
/// two, at least the number of rows when products do not pay.
template <class T>
[[nodiscard]] index_t choose_near(const HeadForward<T>& head, index_t head_dim, index_t value_dim,
                                  const CostModel& model);

}  // namespace convbasis
