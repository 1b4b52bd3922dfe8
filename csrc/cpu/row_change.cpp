#include "cpu/row_change.h"

#include <algorithm>
#include <string>

#include "convbasis/error.h"

namespace convbasis {
namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Rows [first, last) see the key.
struct Stay {
  index_t key, first, last;
};

std::vector<Stay> stays_of(const char* function, const masks::RowChange& mask, index_t n_q,
                           index_t n_kv) {
  std::vector<index_t> since(at(n_kv), -1);
  std::vector<Stay> stays;
  const auto change = [&](index_t key, index_t row, bool is_added) {
    if ((since[at(key)] < 0) != is_added)
      throw InvalidArgument("[" + std::string(function) + "] mask " +
                            (is_added ? "adds key " : "removes key ") + std::to_string(key) +
                            " at row " + std::to_string(row) +
                            "; expected a key to be added where it is not seen and removed where "
                            "it is; got the reverse");
    if (!is_added) stays.push_back({key, since[at(key)], row});
    since[at(key)] = is_added ? row : -1;
  };
  for (const index_t key : mask.first_row) change(key, 0, true);
  for (index_t row = 1; row < n_q; ++row)
    for (const auto& [lists, is_added] : {std::pair(&mask.added, true), {&mask.removed, false}})
      for (index_t i = lists->offsets[at(row - 1)]; i < lists->offsets[at(row)]; ++i)
        change(lists->keys[at(i)], row, is_added);
  for (index_t key = 0; key < n_kv; ++key)
    if (since[at(key)] >= 0) stays.push_back({key, since[at(key)], n_q});
  return stays;
}

/// Lists of numbers by tile, as one list with borders.
class Buckets {
 public:
  explicit Buckets(index_t tiles) : lists_(at(tiles)) {}
  void add(index_t tile, index_t number) { lists_[at(tile)].push_back(number); }
  [[nodiscard]] const std::vector<index_t>& operator[](index_t tile) const {
    return lists_[at(tile)];
  }

 private:
  std::vector<std::vector<index_t>> lists_;
};

/// Of each stay, the tiles [first, last) whose rows all see its key.
struct Whole {
  index_t first, last;
};

void add_running_sum(const std::vector<Stay>& stays, const std::vector<Whole>& whole, index_t tiles,
                     ChangeTiles& result) {
  Buckets entering(tiles + 1), leaving(tiles + 1);
  for (std::size_t s = 0; s < stays.size(); ++s) {
    if (whole[s].first >= whole[s].last) continue;
    entering.add(whole[s].first, static_cast<index_t>(s));
    leaving.add(whole[s].last, static_cast<index_t>(s));
  }
  std::vector<index_t> in_sum, place(stays.size(), 0);
  index_t left = 0;  // since the sum started anew
  result.borders.push_back(0);
  for (index_t tile = 0; tile < tiles; ++tile) {
    for (const index_t s : leaving[tile]) {
      place[at(in_sum.back())] = place[at(s)];
      in_sum[at(place[at(s)])] = in_sum.back();
      in_sum.pop_back();
    }
    for (const index_t s : entering[tile]) {
      place[at(s)] = static_cast<index_t>(in_sum.size());
      in_sum.push_back(s);
    }
    left += static_cast<index_t>(leaving[tile].size());
    const bool is_anew = left >= static_cast<index_t>(in_sum.size());
    const auto add = [&](const std::vector<index_t>& list, char leaves) {
      for (const index_t s : list) {
        result.keys.push_back(stays[at(s)].key);
        result.leaves.push_back(leaves);
      }
    };
    if (is_anew) {
      left = 0;
      add(in_sum, 0);
    } else {
      add(entering[tile], 0);
      add(leaving[tile], 1);
    }
    result.starts_anew.push_back(is_anew ? 1 : 0);
    result.common.push_back(static_cast<index_t>(in_sum.size()));
    result.borders.push_back(static_cast<index_t>(result.keys.size()));
  }
}

void add_single_keys(const std::vector<Stay>& stays, const std::vector<Whole>& whole, index_t tiles,
                     ChangeTiles& result) {
  const index_t rows = result.rows_per_tile;
  Buckets partial(tiles);
  for (std::size_t s = 0; s < stays.size(); ++s)
    for (index_t tile = stays[s].first / rows; tile * rows < stays[s].last; ++tile) {
      if (tile == whole[s].first && tile < whole[s].last) tile = whole[s].last;
      if (tile * rows < stays[s].last) partial.add(tile, static_cast<index_t>(s));
    }
  result.single_borders.push_back(0);
  for (index_t tile = 0; tile < tiles; ++tile) {
    for (const index_t s : partial[tile]) {
      result.single_keys.push_back(stays[at(s)].key);
      result.from.push_back(std::max<index_t>(stays[at(s)].first - tile * rows, 0));
      result.to.push_back(std::min(stays[at(s)].last - tile * rows, rows));
    }
    result.single_borders.push_back(static_cast<index_t>(result.single_keys.size()));
  }
}

}  // namespace

ChangeTiles change_tiles(const char* function, const masks::RowChange& mask, bool is_causal,
                         index_t n_q, std::span<const index_t> keys, index_t n_kv,
                         index_t rows_per_tile) {
  std::vector<Stay> stays = stays_of(function, mask, n_q, n_kv);
  if (is_causal)
    for (Stay& stay : stays) stay.first = std::max(stay.first, stay.key);
  std::erase_if(stays, [&](const Stay& stay) {
    return stay.first >= stay.last || !std::binary_search(keys.begin(), keys.end(), stay.key);
  });
  const index_t tiles = (n_q + rows_per_tile - 1) / rows_per_tile;
  std::vector<Whole> whole;
  ChangeTiles result{rows_per_tile, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  std::vector<index_t> more(at(n_q + 1), 0);
  for (const Stay& stay : stays) {
    whole.push_back({(stay.first + rows_per_tile - 1) / rows_per_tile,
                     stay.last == n_q ? tiles : stay.last / rows_per_tile});
    ++more[at(stay.first)];
    --more[at(stay.last)];
  }
  index_t seen = 0;
  for (index_t row = 0; row < n_q; ++row)
    result.sees_any.push_back((seen += more[at(row)]) > 0 ? 1 : 0);
  add_running_sum(stays, whole, tiles, result);
  add_single_keys(stays, whole, tiles, result);
  return result;
}

}  // namespace convbasis
