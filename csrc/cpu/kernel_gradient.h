#pragma once

#include "cpu/head_forward.h"

namespace convbasis {

/// What products of shares (G / sum) and values are to be multiplied by. The product of both
/// factors may overflow.
template <class T>
struct Unscale {
  T shares = 1, values = 1;
};

/// Gradients of a loss by the logits' kernels of one half: kernel u_r[t] is the logit of all
/// entries (j + t, j) of strip r, so
///
///     du_r[t] = sum over j in strip r of f[j + t, j] * (G_{j+t} . V_j - delta_{j+t}).
///
/// Factors that grow with the rows are kept apart: f[i, j] = weight / sum of row i, so
/// du_r[t] = w_r[t] * (correlation of V with G / sum - window sum of delta / sum).
template <class T>
class KernelGradient {
 public:
  /// Of the strips in half.weights (the first of them may have no logits, see exponentiate). value
  /// and grad (G / sum) are rows of contiguous padded channels, delta (delta / sum) a number a row,
  /// in the order of this half. Rows that are to be left out are 0 in both; delta is scaled like
  /// the products.
  KernelGradient(const Half<T>& half, Rows<const T> value, Rows<const T> grad,
                 std::span<const double> delta, const Unscale<T>& unscale, index_t channels,
                 const Exec& exec, StageSeconds& seconds);

  /// Adds dS of further rows, with all keys of a row, in the order of this half.
  void add(index_t row, const T* logit_grads);

  /// With u_r[t] = q[s_r + t] . k[s_r]: adds du_r[t] k[s_r] to grad_query[s_r + t], and the sum
  /// over t of du_r[t] q[s_r + t] to grad_key[s_r]. All have head_dim contiguous channels.
  void add_to(Rows<const T> query, Rows<const T> key, index_t head_dim, Rows<T> grad_query,
              Rows<T> grad_key, StageSeconds& seconds) const;

 private:
  [[nodiscard]] index_t first_strip() const {
    return layout().count() - half_.logits.layout.count();
  }
  [[nodiscard]] const StripLayout& layout() const { return half_.weights.matrix.layout; }
  void finish(std::span<const double> delta, const Unscale<T>& unscale);

  const Half<T>& half_;
  Exec exec_;
  Buffer<T> memory_;
  Rows<T> grads_;  // du_r in row r
};

}  // namespace convbasis
