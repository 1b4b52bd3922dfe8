#include "cpu/visible_bits.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "convbasis/error.h"
#include "core/buffer.h"

namespace convbasis {
namespace {

constexpr index_t kStill = std::numeric_limits<index_t>::max();  // end of a stay that goes on

/// Calls event(key, row, comes) for all keys of a RowChange in the order of the rows.
template <class Event>
void for_each_change(const masks::RowChange& mask, const Event& event) {
  for (const index_t key : mask.first_row) event(key, 0, true);
  const auto walk = [&](const masks::KeyLists& lists, std::size_t row, bool comes) {
    for (index_t k = lists.offsets[row - 1]; k < lists.offsets[row]; ++k)
      event(lists.keys[static_cast<std::size_t>(k)], static_cast<index_t>(row), comes);
  };
  for (std::size_t row = 1; row < mask.added.offsets.size(); ++row) {
    walk(mask.added, row, true);
    walk(mask.removed, row, false);
  }
}

}  // namespace

ChangingKeys::ChangingKeys(const char* function, const masks::RowChange& mask, index_t n_q,
                           index_t n_kv)
    : keys_(n_kv), offsets_(static_cast<std::size_t>(n_kv + 1)) {
  for_each_change(mask, [&](index_t key, index_t, bool comes) {
    if (comes) ++offsets_[static_cast<std::size_t>(key + 1)];
  });
  std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
  stays_.resize(static_cast<std::size_t>(offsets_.back()));
  std::vector<index_t> next(offsets_.begin(), offsets_.end() - 1);
  for_each_change(mask, [&](index_t key, index_t row, bool comes) {
    const auto at = static_cast<std::size_t>(key);
    index_t& open = next[at];
    Stay* latest = open > offsets_[at] ? &stays_[static_cast<std::size_t>(open - 1)] : nullptr;
    const bool seen = latest != nullptr && latest->end == kStill;
    const bool fits = comes ? !seen : seen && latest->begin < row;
    if (!fits)
      throw InvalidArgument("[" + std::string(function) + "] mask." +
                            (comes ? "added" : "removed") + " changes a key for row " +
                            std::to_string(row) + " that is " + (comes ? "seen" : "not seen") +
                            " there; expected keys that come and go by turns; got key " +
                            std::to_string(key));
    if (comes) {
      stays_[static_cast<std::size_t>(open++)] = {row, kStill};
    } else {
      latest->end = row;
    }
  });
  for (Stay& stay : stays_) stay.end = std::min(stay.end, n_q);
  std::iota(next.begin(), next.end(), index_t{0});  // every key has a list of its own
  group_keys(next);
}

ChangingKeys::ChangingKeys(const masks::DistinctColumns& mask, index_t n_q, index_t n_kv)
    : keys_(n_kv), offsets_{0} {
  for (index_t p = 0; p < mask.patterns.shape[0]; ++p) {
    for (index_t i = 0; i < n_q;) {
      const bool seen = mask.patterns(p, i);
      const index_t begin = i;
      while (i < n_q && mask.patterns(p, i) == seen) ++i;
      if (seen) stays_.push_back({begin, i});
    }
    offsets_.push_back(static_cast<index_t>(stays_.size()));
  }
  group_keys(mask.pattern_of_column);
}

void ChangingKeys::group_keys(std::span<const index_t> list_of_key) {
  word_rows_.assign(static_cast<std::size_t>(ceil_div(keys_, kWordKeys)), {kStill, 0});
  group_offsets_.push_back(0);
  std::vector<Group> mine;
  for (std::size_t w = 0; w < word_rows_.size(); ++w) {
    mine.clear();
    const index_t first = static_cast<index_t>(w) * kWordKeys;
    for (index_t j = first; j < std::min(first + kWordKeys, keys_); ++j)
      mine.push_back({list_of_key[static_cast<std::size_t>(j)], KeyWord{1} << (j - first)});
    std::sort(mine.begin(), mine.end(),
              [](const Group& a, const Group& b) { return a.list < b.list; });
    for (const auto& [list, keys] : mine) {
      const auto at = static_cast<std::size_t>(list);
      if (offsets_[at] == offsets_[at + 1]) continue;  // seen by nobody
      const bool more = static_cast<index_t>(groups_.size()) > group_offsets_.back();
      if (more && groups_.back().list == list) {
        groups_.back().keys |= keys;
        continue;
      }
      groups_.push_back({list, keys});
      Stay& all = word_rows_[w];
      all.begin = std::min(all.begin, stays_[static_cast<std::size_t>(offsets_[at])].begin);
      all.end = std::max(all.end, stays_[static_cast<std::size_t>(offsets_[at + 1] - 1)].end);
    }
    group_offsets_.push_back(static_cast<index_t>(groups_.size()));
  }
}

void ChangingKeys::fill(std::span<const index_t> rows, index_t first, index_t last, KeyWord* words,
                        index_t stride) const {
  const index_t count = static_cast<index_t>(rows.size());
  const auto place = [&](index_t row) {
    return static_cast<index_t>(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin());
  };
  for (index_t r = 0; r < count; ++r) std::fill_n(words + r * stride, last - first, KeyWord{0});
  for (index_t w = first; w < last; ++w) {
    const Stay any = word_rows_[static_cast<std::size_t>(w)];
    if (any.begin > rows.back() || any.end <= rows.front()) continue;
    // Where keys come or go their bits are set; the running exclusive or is what rows see.
    KeyWord* column = words + w - first;
    const auto word = static_cast<std::size_t>(w);
    for (index_t g = group_offsets_[word]; g < group_offsets_[word + 1]; ++g) {
      const auto& [number, keys] = groups_[static_cast<std::size_t>(g)];
      const auto list = static_cast<std::size_t>(number);
      const auto end = stays_.begin() + offsets_[list + 1];
      auto stay = std::partition_point(stays_.begin() + offsets_[list], end,
                                       [&](const Stay& s) { return s.end <= rows.front(); });
      for (; stay != end && stay->begin <= rows.back(); ++stay) {
        const index_t comes = place(stay->begin), goes = place(stay->end);
        if (comes < count) column[comes * stride] ^= keys;
        if (goes < count) column[goes * stride] ^= keys;
      }
    }
    for (index_t r = 1; r < count; ++r) column[r * stride] ^= column[(r - 1) * stride];
  }
}

PackedPatterns::PackedPatterns(const View<const bool, 2>& patterns)
    : words(ceil_div(patterns.shape[1], kWordKeys)),
      bits(static_cast<std::size_t>(patterns.shape[0] * words)) {
  for (index_t p = 0; p < patterns.shape[0]; ++p)
    for (index_t j = 0; j < patterns.shape[1]; ++j)
      bits[static_cast<std::size_t>(p * words + j / kWordKeys)] |= KeyWord{patterns(p, j)}
                                                                   << (j % kWordKeys);
}

}  // namespace convbasis
