#pragma once

#include "cuda/shares.h"

namespace convbasis::cuda {

/// Gradients by the kernels of one triangle's logits of rows that are not spoiled, du_r[t] = sum
/// over j in strip r of f[j + t, j] (G_{j+t} . V_j - delta_{j+t}), in units; (all heads, most,
/// rows), of which lags that exist are written. What grows with the rows is kept apart: w_r[t]
/// times (the correlation of V with G / sum, the shares, - a window's sum of delta / sum).
///
/// See correlate.h; after it each lag is read and written once, with about 30 additions for its
/// window's sum.
template <class T>
[[nodiscard]] DeviceBuffer<T> differentiate_kernels(const Strips<T>& logits,
                                                    const Strips<T>& weights,
                                                    const Schedule& schedule,
                                                    const double* delta_shares,
                                                    const Array<T>& value, const Array<T>& shares,
                                                    index_t workspace, const Stream& stream);

}  // namespace convbasis::cuda
