#pragma once

#include <optional>
#include <span>
#include <vector>

#include "convbasis/calibrate.h"
#include "cpu/key_arrays.h"
#include "cpu/key_selection.h"

namespace convbasis {

/// One query head as calibrated attention reads it.
template <class T>
struct HeadArrays {
  HeadArrays(const View<const T, 2>& q, const KeyArrays<T>& shared, index_t value_channels,
             double logit_scale)
      : query(q),
        key(shared.key),
        keys(shared.panels),
        value(shared.value),
        n(q.shape[0]),
        head_dim(q.shape[1]),
        channels(value_channels),
        scale(logit_scale) {}

  /// Scaled query rows, one after the other.
  void pack_query(std::span<const index_t> rows, T* to) const;

  View<const T, 2> query;
  const Rows<const T>& key;
  const Panels<T>& keys;
  const ValueRows<T>& value;
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

  /// Exact attention of the rows, which errors are relative to, in parts: heavy keys, whose weights
  /// become 0, and key blocks. O(rows n d_v), and O(rows n d_v / 64) memory.
  void attend(std::span<const index_t> heavy, const Exec& exec);
  /// Takes the weights of keys and lags of head number `flat`. O(n d_v).
  void set_model(const Calibration<T>& calibration, const HeadCalibration<T>& found, index_t flat);
  /// ||y~ - y||^2 of each row, by the sum of ||y||^2 over all rows, for what `found` says is taken
  /// exactly, which attend has to know the heavy keys of. O(rows n d_v / 64).
  [[nodiscard]] std::vector<double> errors(const Calibration<T>& calibration,
                                           const HeadCalibration<T>& found, const Exec& exec) const;

 private:
  [[nodiscard]] index_t key_blocks() const { return stride_ / kKeyBlock; }
  /// Of the values of a key block times the row's weights, then of the weights.
  [[nodiscard]] T* block_sums(index_t r, index_t block) {
    return blocks_.data() + (r * key_blocks() + block) * (head_.channels + 1);
  }
  [[nodiscard]] const T* block_sums(index_t r, index_t block) const {
    return blocks_.data() + (r * key_blocks() + block) * (head_.channels + 1);
  }
  double approximate(const Calibration<T>& calibration, const HeadCalibration<T>& found, index_t r,
                     T* out) const;

  const HeadArrays<T>& head_;
  std::vector<index_t> rows_;
  index_t stride_;
  Buffer<T> weights_, out_;
  Buffer<T> heavy_, blocks_;  ///< sums over heavy keys, and over each key block
  std::optional<FarKeys<T>> far_;
  std::vector<double> sums_;
  T unit_ = 1;       ///< largest |Y|: squares overflow where values do not
  double norm_ = 0;  ///< ||Y||^2, in squares of it
};

}  // namespace convbasis
