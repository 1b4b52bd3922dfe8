#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "convbasis/calibrate.h"
#include "core/buffer.h"
#include "cpu/visible.h"

namespace convbasis {

/// Query blocks that take all keys exactly: they have few.
constexpr index_t kWholeBlocks = 4;

/// Which keys a query block takes exactly, heavy ones apart.
struct KeySelection {
  std::vector<KeyRange> exact;  ///< rising; the last one ends with the block
  std::vector<KeyRange> far;    ///< the others before it, rising; whole key blocks
};
template <class T>
[[nodiscard]] KeySelection select_keys(const Calibration<T>& calibration,
                                       const HeadCalibration<T>& head, index_t block);

/// Far keys drawn for a query block. With P_j what a row gives to key j exactly and M_j what the
/// model says, its alpha is the sum of P_j * reciprocal_j by that of M_j * reciprocal_j.
template <class T>
struct FarDraw {
  std::vector<index_t> keys;
  std::vector<T> reciprocals;  ///< of the weights that they were drawn in proportion to
  std::vector<T> shares;       ///< key weights times these
  double step = 0;             ///< the factor that makes sums over drawn keys those over all

  /// Whether far keys can be told from the rounding of `whole`, the model's weight of all keys of a
  /// row, when that of the drawn ones is `model`.
  [[nodiscard]] bool is_modelled(T model, double whole) const {
    constexpr double kRounding = 64 * static_cast<double>(std::numeric_limits<T>::epsilon());
    return static_cast<double>(model) * step > std::max(kRounding * whole, 0.0);
  }
};

/// The far keys of a head, and what a row gives to them.
template <class T>
class FarKeys {
 public:
  FarKeys(const Calibration<T>& calibration, const HeadCalibration<T>& head, index_t flat);

  /// Keys drawn for a block, in proportion to the key's weight and that of the lag between both
  /// blocks: for any f, the sum of f_j over far keys is in the mean step times that of
  /// f_j * reciprocal_j over the drawn ones. O(n / 64).
  [[nodiscard]] FarDraw<T> draw(const KeySelection& selection, index_t block) const;

  /// models[r] = sum over the drawn keys of the model's weight in row first + r, times
  /// reciprocal_j.
  void add_up(const FarDraw<T>& draw, index_t first, index_t count, T* models) const;

  /// weights[j - first] -= factor * the model's weight, for keys [first, last) of a row; returns
  /// the sum of the model's weights.
  double subtract(index_t row, double factor, index_t first, index_t last, T* weights) const;

 private:
  const HeadCalibration<T>& head_;
  std::uint64_t seed_;
  index_t flat_, n_, wanted_;
  std::vector<double> key_sums_;  ///< running sums of the key weights
  Buffer<T> lags_back_;           ///< weight of lag t at n - 1 - t
};

}  // namespace convbasis
