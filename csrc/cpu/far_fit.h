#pragma once

#include <span>
#include <vector>

#include "convbasis/calibrate.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// Attention that sample rows pay to key blocks more than `near_blocks` before their own: what a
/// weight a key and a weight a block lag are fitted to. The block lag of a row and a key is how
/// many blocks of kKeyBlock the one comes after the other.
class FarMasses {
 public:
  FarMasses(index_t n, index_t near_blocks);

  /// More rows, with the weights of their keys and the sums of these.
  template <class T>
  void add(std::span<const index_t> rows, Rows<const T> weights, std::span<const double> sums);

  /// Lags that stand out among those of about the same length, rising.
  [[nodiscard]] std::vector<index_t> single_lags() const;
  /// Takes off what rows that were added have at these lags.
  template <class T>
  void leave_out(std::span<const index_t> lags, std::span<const index_t> rows,
                 Rows<const T> weights, std::span<const double> sums);

  [[nodiscard]] index_t near_blocks() const { return near_blocks_; }
  [[nodiscard]] const std::vector<index_t>& rows() const { return rows_; }
  [[nodiscard]] const std::vector<double>& of_rows() const { return of_rows_; }
  /// Sums over the rows, by key and by lag (n), and by block lag (blocks).
  [[nodiscard]] const std::vector<double>& of_keys() const { return of_keys_; }
  [[nodiscard]] const std::vector<double>& of_lags() const { return of_lags_; }
  [[nodiscard]] const std::vector<double>& of_block_lags() const { return of_block_lags_; }

 private:
  index_t near_blocks_;
  std::vector<index_t> rows_;
  std::vector<double> of_rows_, of_keys_, of_lags_, of_block_lags_;
};

/// Weights of keys and block lags, by iterative proportional fitting: with the best factor for each
/// row, the masses of all keys and of bins of block lags are met, drawn a little to equal weights,
/// as few rows were looked at. Bins grow with the lag. Single lags that stand out from their bin
/// are left out of it. O(iterations * (rows * bins + n)).
struct FarWeights {
  std::vector<double> keys;        ///< (n), their mean is 1
  std::vector<double> block_lags;  ///< (blocks), 0 for near ones
};
[[nodiscard]] FarWeights fit_far(const FarMasses& masses);

}  // namespace convbasis
