#pragma once

#include <span>
#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// Powers of two by which keys and values are multiplied, so that monomials and their sums neither
/// overflow nor vanish. Queries are divided by that of the keys.
template <class T>
struct LowRankScales {
  double key = 1;
  T value = 1;
};

/// Of the power of two that makes keys, less the centre, about as large as scale * query: monomials
/// of both are then about as large as powers of the root of the largest logit. Only the listed rows
/// count. 0 when there is nothing to balance.
template <class T>
[[nodiscard]] int key_exponent(const View<const T, 2>& query, std::span<const index_t> queries,
                               const View<const T, 2>& key, std::span<const index_t> keys,
                               std::span<const double> centre, double scale);

/// Of the power of two with which sums of rows of this matrix neither overflow nor vanish.
template <class T>
[[nodiscard]] int value_exponent(const View<const T, 2>& value);

/// 0, 1, ..., count - 1 but for those left out, which rise.
[[nodiscard]] std::vector<index_t> numbers_without(index_t count,
                                                   std::span<const index_t> left_out);

}  // namespace convbasis
