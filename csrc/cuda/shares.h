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
};

/// What gradients need of each row, (all heads, rows) and its channels; in units.
template <class T>
struct Shares {
  DeviceBuffer<HeadUnits> units;      ///< (all heads)
  DeviceBuffer<T> shares;             ///< grad_output / row sum, 0 for spoiled rows
  DeviceBuffer<T> value;              ///< (all key heads, columns, dv)
  DeviceBuffer<double> delta;         ///< grad_output . output
  DeviceBuffer<double> delta_shares;  ///< delta / row sum, in both units; 0 for spoiled rows
};

/// Of the outputs of the forward pass, before any rounding. Each row is read three times and
/// written once: 4 numbers moved for each of its channels.
template <class T>
[[nodiscard]] Shares<T> divide_by_sums(const HeadsForward<T>& forward, const Array<T>& value,
                                       const Array<T>& grad_output, const Array<T>& output,
                                       const Stream& stream);

}  // namespace convbasis::cuda
