#pragma once

#include <span>
#include <vector>

#include "convbasis/types.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// Attention that sample rows pay to keys at least `window` before them: what a weight a key and a
/// weight a lag are fitted to.
class FarMasses {
 public:
  FarMasses(index_t n, index_t window);

  /// More rows, with the weights of their keys and the sums of these.
  template <class T>
  void add(std::span<const index_t> rows, Rows<const T> weights, std::span<const double> sums);

  [[nodiscard]] index_t window() const { return window_; }
  [[nodiscard]] const std::vector<index_t>& rows() const { return rows_; }
  [[nodiscard]] const std::vector<double>& of_rows() const { return of_rows_; }
  /// Sums over the rows, by key and by lag (n).
  [[nodiscard]] const std::vector<double>& of_keys() const { return of_keys_; }
  [[nodiscard]] const std::vector<double>& of_lags() const { return of_lags_; }

 private:
  index_t window_;
  std::vector<index_t> rows_;
  std::vector<double> of_rows_, of_keys_, of_lags_;
};

/// Weights of keys and lags, by iterative proportional fitting: with the best factor for each row,
/// the masses of all keys and of bins of lags are met, drawn a little to equal weights, as few rows
/// were looked at. Bins grow with the lag; a single lag that stands out has one of its own.
/// O(iterations * (rows * bins + n)).
struct FarWeights {
  std::vector<double> keys;  ///< (n), their mean is 1
  std::vector<double> lags;  ///< (n), 0 inside the window
};
[[nodiscard]] FarWeights fit_far(const FarMasses& masses);

}  // namespace convbasis
