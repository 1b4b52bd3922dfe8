#pragma once

#include <vector>

#include "convbasis/lowrank.h"
#include "cpu/key_windows.h"
#include "cpu/lowrank_states.h"
#include "cpu/operator.h"

namespace convbasis {

/// The softmax matrix D^-1 (W o P(scale * q . (k - centre))) of a head as products of monomials.
/// Its arrays have to outlive it. Exact rows and columns of the polynomial are not taken. Throws
/// Unsupported for masks that key_windows does not turn into windows, or that transposed refuses.
template <class T>
class LowRankOperator final : public AttentionOperator<T> {
 public:
  LowRankOperator(const View<const T, 2>& query, const View<const T, 2>& key,
                  const View<const T, 2>& value, const HeadPolynomial& polynomial, double scale,
                  const AttentionOptions& options, const Exec& exec);

  [[nodiscard]] index_t rows() const override { return query_.shape[0]; }
  [[nodiscard]] index_t columns() const override { return count_; }
  [[nodiscard]] index_t channel_multiple() const override { return 1; }
  void multiply(bool transpose, Rows<const T> x, Rows<T> y, index_t channels) const override;

  /// f V, the output of attention.
  [[nodiscard]] Rows<const T> output() const { return {output_.data(), value_dim_}; }
  /// Whether the weights of every row that sees a key sum to a positive number, and outputs are
  /// finite.
  [[nodiscard]] bool is_sound() const { return is_sound_; }

 private:
  [[nodiscard]] Buffer<T> product(bool transpose, const View<const T, 2>& x) const;

  View<const T, 2> query_;
  index_t count_, value_dim_;
  double scale_;
  Exec exec_;
  std::vector<double> coefficients_;
  Monomials monomials_;
  Buffer<T> keys_;  ///< less the centre
  std::vector<KeyWindows> parts_, transposed_parts_;
  Buffer<T> inverse_sums_, output_;
  bool is_sound_ = true;
};

}  // namespace convbasis
