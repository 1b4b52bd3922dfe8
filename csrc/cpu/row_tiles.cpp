#include "cpu/row_tiles.h"

#include <algorithm>
#include <numeric>

#include "cpu/tiles.h"

namespace convbasis {
namespace {

/// Keys of the shortest range, and most rows over all ranges, which bounds the memory of results.
constexpr index_t kRangeKeys = 1024, kMostResults = 8192;

}  // namespace

RowTiles::RowTiles(std::span<const index_t> listed, index_t keys, bool is_causal, index_t most_rows)
    : places_(listed.size()) {
  std::iota(places_.begin(), places_.end(), index_t{0});
  const auto row_at = [&](index_t place) { return listed[static_cast<std::size_t>(place)]; };
  std::stable_sort(places_.begin(), places_.end(),
                   [&](index_t a, index_t b) { return row_at(a) < row_at(b); });
  for (index_t place : places_) rows_.push_back(row_at(place));

  const index_t most = std::max<index_t>(kMostResults / std::max<index_t>(count(), 1), 1);
  const index_t wanted = std::clamp<index_t>(ceil_div(keys, kRangeKeys), 1, most);
  const index_t length = std::max(round_up(ceil_div(keys, wanted), kKeyTile), kKeyTile);
  index_t first = 0;
  do {
    const index_t last = std::min(first + length, keys);
    const auto seeing = std::lower_bound(rows_.begin(), rows_.end(), is_causal ? first : 0);
    for (index_t i = seeing - rows_.begin(); i < count(); i += most_rows)
      tiles_.push_back({i, std::min(i + most_rows, count()), first, last, ranges_});
    ++ranges_;
    first = last;
  } while (first < keys);

  const auto work = [&](const Tile& tile) {
    const index_t seen = visible_keys(rows(tile).back(), tile.last_key, is_causal);
    return (tile.last_row - tile.first_row) * (seen - tile.first_key);
  };
  std::stable_sort(tiles_.begin(), tiles_.end(),
                   [&](const Tile& a, const Tile& b) { return work(a) > work(b); });
}

}  // namespace convbasis
