#pragma once

#include <span>
#include <vector>

#include "convbasis/mask.h"

namespace convbasis {

/// A RowChange in tiles of rows. The keys that all rows of a tile see make up a running sum, which
/// changes from tile to tile; the others are single keys, each seen by a run of the tile's rows.
struct ChangeTiles {
  index_t rows_per_tile;
  std::vector<index_t> keys;         ///< that enter or leave the running sum, tile after tile
  std::vector<char> leaves;          ///< of each
  std::vector<index_t> borders;      ///< tile t has those in [borders[t], borders[t + 1])
  std::vector<char> starts_anew;     ///< tiles before which the sum is 0
  std::vector<index_t> common;       ///< keys in the running sum of each tile
  std::vector<index_t> single_keys;  ///< key s is seen by rows from[s] <= r < to[s] of its tile
  std::vector<index_t> from, to;
  std::vector<index_t> single_borders;
  std::vector<char> sees_any;  ///< each row
};

/// `rows_per_tile` rows make a tile. Of the keys only the listed ones count (rising). The sum
/// starts anew where as many keys have left it as are in it, so that rounding does not build up;
/// that at most doubles the work. Throws InvalidArgument, in the name of `function`, where a key is
/// added that is seen, or removed that is not.
[[nodiscard]] ChangeTiles change_tiles(const char* function, const masks::RowChange& mask,
                                       bool is_causal, index_t n_q, std::span<const index_t> keys,
                                       index_t n_kv, index_t rows_per_tile);

}  // namespace convbasis
