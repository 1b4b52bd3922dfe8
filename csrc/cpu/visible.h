#pragma once

#include <span>
#include <variant>
#include <vector>

#include "convbasis/mask.h"
#include "cpu/visible_bits.h"

namespace convbasis {

/// Keys [first, last).
struct KeyRange {
  index_t first, last;
};

/// What a row sees: keys [0, lead) and range, and of these only those of its bits, when it has any:
/// key j is bit j - base.
struct RowSight {
  index_t lead = 0;
  KeyRange range{0, 0};
  const KeyWord* bits = nullptr;
  index_t base = 0;

  /// Of keys [first, last) of one segment, those between the first and the last that are seen,
  /// bits apart.
  [[nodiscard]] KeyRange within(index_t first, index_t last) const;
  /// How many of these are seen.
  [[nodiscard]] index_t count_seen(KeyRange keys) const;
};

/// What a tile of query rows sees. Belongs to a thread and is filled again for every tile.
class TileSight {
 public:
  /// Disjoint ranges outside of which no row sees a key, in rising order.
  [[nodiscard]] std::span<const KeyRange> segments() const { return segments_; }
  /// Of row r of the tile.
  [[nodiscard]] const RowSight& row(index_t r) const { return rows_[static_cast<std::size_t>(r)]; }

 private:
  friend class VisibleKeys;
  void clip(KeyRange keys);
  void find_segments(KeyRange keys);
  void cut_segments_to_bits();

  std::vector<RowSight> rows_;
  std::vector<KeyRange> segments_, ranges_;
  std::vector<KeyWord> words_, any_;
};

/// Which keys the query rows of a head see. Made once, then read by all threads.
///
/// Keys and queries have an order of their own where that makes a row see few ranges: those of a
/// Longformer begin with its global tokens. Keys are numbered in that order from then on, rows
/// everywhere by the position of the query.
class VisibleKeys {
 public:
  /// Checks the mask, and throws InvalidArgument in the name of `function`. The mask's arrays have
  /// to outlive this.
  VisibleKeys(const char* function, const Mask& mask, bool is_causal, index_t n_q, index_t n_kv);
  /// No mask but, perhaps, the causal one.
  VisibleKeys(bool is_causal, index_t n_kv) : n_kv_(n_kv), is_causal_(is_causal) {}

  /// What `rows`, in rising order when they have bits, see of the keys.
  void look(std::span<const index_t> rows, KeyRange keys, TileSight& tile) const;
  void look(std::span<const index_t> rows, TileSight& tile) const { look(rows, {0, n_kv_}, tile); }

  /// Position of each key, or query, in the order in which they are taken; empty: as they are.
  [[nodiscard]] std::span<const index_t> key_order() const { return key_order_; }
  [[nodiscard]] std::span<const index_t> query_order() const { return query_order_; }
  /// Whether row i sees none but the first i + 1 keys in that order.
  [[nodiscard]] bool is_causal() const { return is_causal_ && key_order_.empty(); }
  [[nodiscard]] bool has_mask() const { return mask_.index() != 0; }
  /// Of one row, but for its bits when they change from row to row.
  [[nodiscard]] RowSight sight(index_t row) const;

 private:
  [[nodiscard]] RowSight sight_of(const masks::Longformer& mask, index_t row, index_t limit) const;

  Mask mask_;
  index_t n_kv_;
  bool is_causal_;
  ChangingKeys changes_;
  PackedPatterns patterns_;
  std::vector<index_t> key_order_, query_order_;
};

/// Positions 0..count - 1 in an order that, when empty, is their own.
[[nodiscard]] std::vector<index_t> positions(std::span<const index_t> order, index_t count);

}  // namespace convbasis
