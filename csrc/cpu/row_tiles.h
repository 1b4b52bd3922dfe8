#pragma once

#include <span>
#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// Listed query rows in increasing order, cut into tiles of at most `most_rows` and one range of
/// keys. A few rows alone would be one or two tiles that walk all keys, too few for the threads;
/// what they give for the ranges is to be put together. The cut depends on sizes only.
class RowTiles {
 public:
  /// Positions [first_row, last_row) of rows() against keys [first_key, last_key).
  struct Tile {
    index_t first_row, last_row, first_key, last_key, range;
  };

  RowTiles(std::span<const index_t> listed, index_t keys, bool is_causal, index_t most_rows);

  [[nodiscard]] index_t count() const { return static_cast<index_t>(rows_.size()); }
  /// Sorted rows of a tile.
  [[nodiscard]] std::span<const index_t> rows(const Tile& tile) const {
    return std::span(rows_).subspan(static_cast<std::size_t>(tile.first_row),
                                    static_cast<std::size_t>(tile.last_row - tile.first_row));
  }
  /// Where a sorted row stands in the list.
  [[nodiscard]] index_t place(index_t i) const { return places_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] index_t ranges() const { return ranges_; }
  /// Every row meets every range of which it sees a key, and the first one in any case; the
  /// largest tiles come first.
  [[nodiscard]] const std::vector<Tile>& tiles() const { return tiles_; }

 private:
  std::vector<index_t> rows_, places_;
  std::vector<Tile> tiles_;
  index_t ranges_ = 0;
};

}  // namespace convbasis
