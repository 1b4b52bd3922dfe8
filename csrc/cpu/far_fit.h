#pragma once

#include <span>
#include <vector>

#include "convbasis/types.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// Attention that sample rows pay to keys at least `window` before them: what a weight a key and a
/// weight a lag are fitted to.
struct FarMasses {
  std::vector<double> keys;  ///< (n): sum over the rows
  std::vector<double> lags;  ///< (n): the same by lag
  std::vector<double> rows;  ///< of each row
};
template <class T>
[[nodiscard]] FarMasses far_masses(std::span<const index_t> rows, Rows<const T> weights,
                                   std::span<const double> sums, index_t n, index_t window);

/// Weights of keys and lags, by iterative proportional fitting: with the best factor for each row,
/// the masses of all keys and of bins of lags are met, drawn a little to equal weights, as few rows
/// were looked at. Bins grow with the lag; a single lag that stands out has one of its own.
/// O(iterations * (rows * bins + n)).
struct FarWeights {
  std::vector<double> keys;  ///< (n), their mean is 1
  std::vector<double> lags;  ///< (n), 0 below `window`
};
[[nodiscard]] FarWeights fit_far(const FarMasses& masses, std::span<const index_t> rows,
                                 index_t window);

}  // namespace convbasis
