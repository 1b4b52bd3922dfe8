#pragma once

#include "cuda/heads_forward.h"

namespace convbasis::cuda {

/// Powers of two that a head's numbers are multiplied by, so that sums of products neither overflow
/// nor underflow: gradients are formed of grad * grad_output, and of value * values. Heads that
/// share a key head have the same `value`.
struct HeadUnits {
  double grad, value;
  /// What a sum in these units is without them.
  [[nodiscard]] CONVBASIS_DEVICE double without_both(double sum, double scale) const {
    return sum * (scale / grad) / value;
  }
  [[nodiscard]] CONVBASIS_DEVICE double without_grad(double sum) const { return sum / grad; }
};

/// What gradients need of each row. The gradient by the logits does not change when a vector is
/// added to all values, whose mean would be noise only. Numbers are (all heads, rows) and its
/// channels; in units.
template <class T>
struct Shares {
  DeviceBuffer<HeadUnits> units;      ///< (all heads)
  DeviceBuffer<T> shares;             ///< grad_output / row sum, 0 for spoiled rows
  DeviceBuffer<T> value;              ///< value - its mean, (all key heads, columns, dv)
  DeviceBuffer<double> delta;         ///< grad_output . (output - mean of the values)
  DeviceBuffer<double> delta_shares;  ///< delta / row sum, in both units; 0 for spoiled rows
};

/// The mean row of each key head, (all key heads, channels).
template <class T>
[[nodiscard]] DeviceBuffer<double> means_of_rows(const Array<T>& x, index_t key_heads,
                                                 const Stream& stream);

/// x - means, multiplied by units of values, or by 1 without units: (all key heads, rows,
/// channels).
template <class T>
void subtract_means(const Array<T>& x, index_t key_heads, const double* means,
                    const HeadUnits* units, T* to, const Stream& stream);

/// Of the outputs of the forward pass, before any rounding. Each row is read three times and
/// written once: 4 numbers moved for each of its channels.
template <class T>
[[nodiscard]] Shares<T> divide_by_sums(const HeadsForward<T>& forward, const Array<T>& value,
                                       const Array<T>& grad_output, const Array<T>& output,
                                       const Stream& stream);

}  // namespace convbasis::cuda
