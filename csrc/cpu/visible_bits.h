#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "convbasis/mask.h"

namespace convbasis {

/// Keys of a word, one a bit.
constexpr index_t kWordKeys = 64;
using KeyWord = std::uint64_t;

/// Keys that come and go, or have patterns, from row to row: gives tiles of any rows as bits.
/// Made once, then read by all threads. Memory: that of the mask, of a word for every 64 keys, and
/// of a bit for each entry of a pattern.
class ChangingKeys {
 public:
  ChangingKeys() = default;
  /// Throws InvalidArgument in the name of `function` when keys do not come and go by turns.
  ChangingKeys(const char* function, const masks::RowChange& mask, index_t n_q, index_t n_kv);
  ChangingKeys(const masks::DistinctColumns& mask, index_t n_q, index_t n_kv);

  [[nodiscard]] index_t keys() const { return keys_; }
  /// Fills words[r * stride + w - first] for words w in [first, last) of the keys that rows[r]
  /// sees; rows in rising order. Bits past the last key are 0.
  void fill(std::span<const index_t> rows, index_t first, index_t last, KeyWord* words,
            index_t stride) const;

 private:
  /// Rows [begin, end) in which a key is seen.
  struct Stay {
    index_t begin, end;
  };
  /// Keys of one word that have the same list of stays.
  struct Group {
    index_t list;
    KeyWord keys;
  };
  void group_keys(std::span<const index_t> list_of_key);

  index_t keys_ = 0;
  std::vector<index_t> offsets_;        // of the lists in stays_, one more than there are lists
  std::vector<Stay> stays_;             // in rising order in each list
  std::vector<index_t> group_offsets_;  // of the words in groups_
  std::vector<Group> groups_;
  std::vector<Stay> word_rows_;  // of each word of keys, outside of which none of them is seen
};

/// The patterns of DistinctRows as bits, one row of `words` words after another.
struct PackedPatterns {
  PackedPatterns() = default;
  explicit PackedPatterns(const View<const bool, 2>& patterns);
  [[nodiscard]] const KeyWord* row(index_t pattern) const { return bits.data() + pattern * words; }

  index_t words = 0;
  std::vector<KeyWord> bits;
};

}  // namespace convbasis
