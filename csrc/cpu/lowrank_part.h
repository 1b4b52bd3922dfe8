#pragma once

#include <vector>

#include "cpu/key_windows.h"
#include "cpu/lowrank_rows.h"

namespace convbasis {

/// The part of P(scale * q . k) that key_windows gives, prepared for products with queries.
template <class T>
class LowRankPart {
 public:
  LowRankPart(const Monomials& monomials, std::span<const double> coefficients, KeyWindows windows,
              const View<const T, 2>& key, const View<const T, 2>& value,
              std::span<const double> centre, const LowRankScales<T>& scales, const Exec& exec);

  /// sums.row(i) += weights of query i times (values, 1), groups.padded() numbers. `scale` is that
  /// of the logits over that of the keys.
  void add(const View<const T, 2>& query, double scale, Rows<T> sums, const Exec& exec) const;

  [[nodiscard]] const KeyWindows& windows() const { return windows_; }

 private:
  struct Plan {
    index_t chunk;
    typename ChunkStates<T>::Kind kind;
    std::vector<WindowTile> tiles;
    bool by_nodes = false;  ///< see add_nodes
  };
  /// A node of the tree of chunks, and a tile whose range has it.
  struct Use {
    index_t node, tile;
  };
  [[nodiscard]] Plan plan();
  void add_nodes(const View<const T, 2>& query, double scale, Rows<T> sums, const Exec& exec) const;
  void add_uses(std::vector<Use> uses, const View<const T, 2>& query, double scale, Rows<T> sums,
                const Exec& exec) const;
  void add_single_keys(const WindowTile& tile, index_t first, index_t last,
                       LowRankRows<T>& block) const;

  const Monomials& monomials_;
  std::vector<T> coefficients_;
  KeyWindows windows_;
  LowRankKeys<T> keys_;
  Plan plan_;
  ChunkStates<T> states_;
};

}  // namespace convbasis
