#pragma once

#include <vector>

#include "cpu/lowrank_rows.h"
#include "cpu/row_change.h"

namespace convbasis {

/// P(scale * q . k) under a RowChange, prepared for products with queries.
template <class T>
class LowRankChange {
 public:
  LowRankChange(const Monomials& monomials, std::span<const double> coefficients, ChangeTiles tiles,
                const View<const T, 2>& key, const View<const T, 2>& value,
                std::span<const double> centre, const LowRankScales<T>& scales, const Exec& exec);

  /// As LowRankPart::add.
  void add(const View<const T, 2>& query, double scale, Rows<T> sums, const Exec& exec) const;

  [[nodiscard]] const std::vector<char>& sees_any() const { return tiles_.sees_any; }

 private:
  void add_single_keys(index_t tile, index_t first, index_t last, LowRankRows<T>& block) const;

  const Monomials& monomials_;
  std::vector<T> coefficients_;
  ChangeTiles tiles_;
  LowRankKeys<T> single_keys_;
  ChunkStates<T> states_;
};

}  // namespace convbasis
