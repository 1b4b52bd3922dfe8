#pragma once

#include <vector>

#include "convbasis/calibrate.h"
#include "core/buffer.h"
#include "cpu/simd/kernels.h"
#include "cpu/visible.h"

namespace convbasis {

/// Query blocks that take all keys exactly: they have few.
constexpr index_t kWholeBlocks = 4;

/// Which keys a query block takes exactly, heavy ones and single lags apart.
struct KeySelection {
  std::vector<KeyRange> exact;  ///< rising; the last one ends with the block
  std::vector<KeyRange> far;    ///< the others before it, rising; whole key blocks

  [[nodiscard]] bool is_far(index_t key) const {
    for (const KeyRange& range : far)
      if (range.first <= key && key < range.last) return true;
    return false;
  }
};
template <class T>
[[nodiscard]] KeySelection select_keys(const Calibration<T>& calibration,
                                       const HeadCalibration<T>& head, index_t block);

/// Far keys drawn for a query block, in proportion to the model's weights: what a row gives to each
/// of them exactly, times its reciprocal, is in the mean alpha.
template <class T>
struct FarDraw {
  std::vector<index_t> keys;   ///< rising, one may come twice
  std::vector<T> reciprocals;  ///< of the model's weights with alpha 1
  double step = 0;             ///< the factor that makes sums over drawn keys those over all
};

/// The far keys of a head by blocks: the model's weights with alpha 1, and their sums.
template <class T>
class FarKeys {
 public:
  FarKeys(const Calibration<T>& calibration, const HeadCalibration<T>& head, index_t flat,
          Rows<const T> values, index_t channels);

  /// Keys drawn for a block: for any f, the sum of f_j over far keys is in the mean step times that
  /// of f_j * reciprocal_j over the drawn ones. O(n / 64).
  [[nodiscard]] FarDraw<T> draw(const KeySelection& selection, index_t block) const;

  /// sums[c] = weighted sum of channel c over the far keys of a block, the sum of weights at
  /// c = channels. O(n d / 64).
  void add_up(const KeySelection& selection, index_t block, T* sums) const;

  /// Weight of a key in the rows of a block.
  [[nodiscard]] T weight(index_t block, index_t key) const {
    return head_.lag_weights[static_cast<std::size_t>(block - key / kKeyBlock)] *
           head_.key_weights[static_cast<std::size_t>(key)];
  }

 private:
  const HeadCalibration<T>& head_;
  std::uint64_t seed_;
  index_t flat_, wanted_, channels_;
  std::vector<double> key_sums_;  ///< running sums of the key weights
  Buffer<T> block_sums_;          ///< of each key block: weighted values, then weights
};

}  // namespace convbasis
