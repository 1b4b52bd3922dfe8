#pragma once

#include "cuda/numeric.h"
#include "cuda/shares.h"

namespace convbasis::cuda {

/// The flagged rows of each head, in their order.
struct SpoiledRows {
  DeviceBuffer<std::int32_t> rows, counts;  ///< (all heads, rows), (all heads)
};

/// Reads the flags twice.
[[nodiscard]] SpoiledRows list_spoiled(const std::int32_t* spoiled, index_t all, index_t rows,
                                       const Stream& stream);

/// What the gradients of rows that rounding spoiled are formed of, one by one: O(n d) a row. Rows
/// are those of one triangle, in its order. Each sum has one owner, which goes through the rows in
/// their order. A head without such rows costs a look at its count.
template <class T>
struct SpoiledGradient {
  StripTable<T> logits;
  const std::int32_t *rows, *counts;  ///< see SpoiledRows
  const double *lse, *delta;          ///< (all heads, rows); delta in units
  const HeadUnits* units;
  Array<T> value, grad_output;  ///< value in units, without its mean
  int first_lag;                ///< that counts

  /// The first place of a head's list that holds `row` or a later one.
  [[nodiscard]] CONVBASIS_DEVICE int place_of(int head, index_t row) const {
    const std::int32_t* list = rows + head * logits.rows;
    int low = 0, high = counts[head];
    while (low < high) {
      const int middle = (low + high) / 2;
      if (list[middle] < row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  /// Entry of f; `strip` is that of the column, or -1.
  [[nodiscard]] CONVBASIS_DEVICE T weight(int head, int strip, index_t row, index_t column) const {
    if (column >= logits.columns || column + first_lag > row) return T(0);
    const double logit =
        strip < 0 ? 0.0 : static_cast<double>(logits.kernel(head, strip)[row - column]);
    return static_cast<T>(exp(logit - lse[head * logits.rows + row]));
  }
  /// delta in both units.
  [[nodiscard]] CONVBASIS_DEVICE T delta_of(int head, index_t row) const {
    return static_cast<T>(delta[head * logits.rows + row] * units[head].value);
  }
};

/// Adds f^T grad_output, in units, to grad_value (all heads, columns, dv).
template <class T>
void add_spoiled_values(const SpoiledGradient<T>& spoiled, const Array<T>& grad_value,
                        const Stream& stream);

/// Adds f (G V - delta), in units, to the kernels' gradients (all heads, most, rows).
template <class T>
void add_spoiled_kernels(const SpoiledGradient<T>& spoiled, index_t all, T* kernel_grads,
                         const Stream& stream);

}  // namespace convbasis::cuda
