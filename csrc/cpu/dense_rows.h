#pragma once

#include <optional>
#include <span>
#include <vector>

#include "convbasis/calibrate.h"
#include "cpu/key_selection.h"
#include "cpu/panels.h"
#include "cpu/rows.h"

namespace convbasis {

/// One head as calibrated attention reads it.
template <class T>
struct HeadArrays {
  HeadArrays(const View<const T, 2>& q, const View<const T, 2>& k, const View<const T, 2>& v,
             double logit_scale, const Exec& exec)
      : query(q),
        key(as_rows(k, key_copy)),
        keys(key, k.shape[0], k.shape[1], exec),
        value(as_value_rows(v, v.shape[1], value_copy, exec)),
        n(k.shape[0]),
        head_dim(k.shape[1]),
        channels(v.shape[1]),
        scale(logit_scale) {}

  /// Scaled query rows, one after the other.
  void pack_query(std::span<const index_t> rows, T* to) const;

  View<const T, 2> query;
  Buffer<T> key_copy, value_copy;
  Rows<const T> key;
  Panels<T> keys;
  ValueRows<T> value;
  index_t n, head_dim, channels;
  double scale;
};

/// Attention of a few rows of a head to all keys: what a basis is fitted to and tried on.
template <class T>
class DenseRows {
 public:
  /// `rows` are increasing. Throws InvalidArgument when a logit overflows. O(rows n d).
  DenseRows(const HeadArrays<T>& head, std::vector<index_t> rows, const Exec& exec);

  [[nodiscard]] std::span<const index_t> rows() const { return rows_; }
  /// exp(logit - largest of the row), 0 after the row's own key, and their sums.
  [[nodiscard]] Rows<const T> weights() const { return {weights_.data(), stride_}; }
  [[nodiscard]] std::span<const double> sums() const { return sums_; }

  /// Exact attention of the rows, which errors are relative to. O(rows n d_v).
  void attend(const Exec& exec);
  /// Takes the weights of keys and lags of head number `flat`. O(rows n d_v).
  void set_model(const Calibration<T>& calibration, const HeadCalibration<T>& found, index_t flat,
                 const Exec& exec);
  /// ||y~ - y||^2 of each row, by the sum of ||y||^2 over all rows, for what `found` says is taken
  /// exactly. O(rows (exact keys of a row) d_v).
  [[nodiscard]] std::vector<double> errors(const Calibration<T>& calibration,
                                           const HeadCalibration<T>& found, const Exec& exec) const;

 private:
  double approximate(const Calibration<T>& calibration, const HeadCalibration<T>& found, index_t r,
                     T* out) const;

  const HeadArrays<T>& head_;
  std::vector<index_t> rows_;
  index_t stride_;
  Buffer<T> weights_, out_;
  std::optional<FarKeys<T>> far_;
  Buffer<T> far_sums_;               ///< of values, by the weights of the model alone
  std::vector<double> far_weights_;  ///< sums of these
  std::vector<double> sums_;
  T unit_ = 1;       ///< largest |Y|: squares overflow where values do not
  double norm_ = 0;  ///< ||Y||^2, in squares of it
};

}  // namespace convbasis
