#include "cpu/visible.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "core/mask.h"
#include "cpu/panels.h"

namespace convbasis {
namespace {

/// Adds a range to disjoint ones in rising order. Those with a gap of less than a panel between
/// them become one.
void append(std::vector<KeyRange>& ranges, KeyRange next, std::size_t first) {
  if (ranges.size() > first && next.first < round_up(ranges.back().last, kPanel)) {
    ranges.back().last = std::max(ranges.back().last, next.last);
  } else {
    ranges.push_back(next);
  }
}

KeyRange window_of(index_t row, index_t size, index_t limit) {
  return {std::max<index_t>(row - size + 1, 0), std::min(row + size, limit)};
}

/// How many tokens, which rise, are below a position.
index_t count_below(std::span<const index_t> tokens, index_t position) {
  return std::lower_bound(tokens.begin(), tokens.end(), position) - tokens.begin();
}

/// Positions 0..count - 1, those of the tokens first; empty when none of them is a token.
std::vector<index_t> tokens_first(std::span<const index_t> tokens, index_t count) {
  const index_t chosen = count_below(tokens, count);
  if (chosen == 0) return {};
  std::vector<index_t> order(tokens.begin(), tokens.begin() + chosen);
  for (index_t i = 0, next = 0; i < count; ++i) {
    if (next < chosen && tokens[static_cast<std::size_t>(next)] == i) {
      ++next;
    } else {
      order.push_back(i);
    }
  }
  return order;
}

}  // namespace

std::vector<index_t> positions(std::span<const index_t> order, index_t count) {
  std::vector<index_t> all(order.begin(), order.end());
  if (all.empty()) {
    all.resize(static_cast<std::size_t>(count));
    std::iota(all.begin(), all.end(), index_t{0});
  }
  return all;
}

KeyRange RowSight::within(index_t first, index_t last) const {
  if (lead > first) return {first, std::min(lead, last)};
  const index_t begin = std::clamp(range.first, first, last);
  return {begin, std::clamp(range.last, begin, last)};
}

index_t RowSight::count_seen(KeyRange keys) const {
  if (bits == nullptr) return keys.last - keys.first;
  index_t count = 0;
  for (index_t at = keys.first - base, next = 0; at < keys.last - base; at = next) {
    next = std::min((at / kWordKeys + 1) * kWordKeys, keys.last - base);
    const KeyWord ahead = bits[at / kWordKeys] >> (at % kWordKeys);
    count += std::popcount(ahead << (kWordKeys - (next - at)));
  }
  return count;
}

void TileSight::clip(KeyRange keys) {
  for (RowSight& row : rows_) {
    row.lead = std::min(row.lead, keys.last);
    row.range = {std::max(row.range.first, keys.first), std::min(row.range.last, keys.last)};
    if (row.range.first >= row.range.last) row.range = {0, 0};
  }
}

void TileSight::find_segments(KeyRange keys) {
  segments_.clear();
  ranges_.clear();
  index_t lead = keys.first;
  for (const RowSight& row : rows_) {
    lead = std::max(lead, row.lead);
    if (row.range.first < row.range.last) ranges_.push_back(row.range);
  }
  if (lead > keys.first) segments_.push_back({keys.first, lead});
  const auto before = [](const KeyRange& a, const KeyRange& b) { return a.first < b.first; };
  if (!std::is_sorted(ranges_.begin(), ranges_.end(), before))
    std::sort(ranges_.begin(), ranges_.end(), before);
  const std::size_t leading = segments_.size();
  for (const KeyRange& range : ranges_) append(segments_, range, leading);
}

void TileSight::cut_segments_to_bits() {
  if (segments_.empty()) return;
  const KeyRange hull{segments_.front().first, segments_.back().last};
  const index_t base = hull.first / kWordKeys * kWordKeys;
  any_.assign(static_cast<std::size_t>(ceil_div(hull.last - base, kWordKeys)), 0);
  for (const RowSight& row : rows_)
    for (std::size_t w = 0; w < any_.size(); ++w)
      any_[w] |= row.bits[(base - row.base) / kWordKeys + static_cast<index_t>(w)];
  segments_.clear();
  for (std::size_t w = 0; w < any_.size(); ++w) {
    const index_t key = base + static_cast<index_t>(w) * kWordKeys;
    if (any_[w] != 0)
      append(segments_, {std::max(key, hull.first), std::min(key + kWordKeys, hull.last)}, 0);
  }
}

VisibleKeys::VisibleKeys(const char* function, const Mask& mask, bool is_causal, index_t n_q,
                         index_t n_kv)
    : mask_(mask), n_kv_(n_kv), is_causal_(is_causal) {
  require_mask(function, mask, n_q, n_kv);
  if (const auto* change = std::get_if<masks::RowChange>(&mask)) {
    changes_ = ChangingKeys(function, *change, n_q, n_kv);
  } else if (const auto* columns = std::get_if<masks::DistinctColumns>(&mask)) {
    changes_ = ChangingKeys(*columns, n_q, n_kv);
  } else if (const auto* rows = std::get_if<masks::DistinctRows>(&mask)) {
    patterns_ = PackedPatterns(rows->patterns);
  } else if (const auto* longformer = std::get_if<masks::Longformer>(&mask)) {
    key_order_ = tokens_first(longformer->global_tokens, n_kv);
    query_order_ = tokens_first(longformer->global_tokens, n_q);
  }
}

RowSight VisibleKeys::sight_of(const masks::Longformer& mask, index_t row, index_t limit) const {
  const std::span<const index_t> tokens = mask.global_tokens;
  const bool sees_all = std::binary_search(tokens.begin(), tokens.end(), row);
  const KeyRange near = sees_all ? KeyRange{0, limit} : window_of(row, mask.window, limit);
  RowSight sight{count_below(tokens, limit)};
  if (near.first >= near.last) return sight;
  const index_t global = count_below(tokens, n_kv_);
  sight.range = {global + near.first - count_below(tokens, near.first),
                 global + near.last - count_below(tokens, near.last)};
  return sight;
}

RowSight VisibleKeys::sight(index_t row) const {
  const index_t limit = is_causal_ ? std::min(row + 1, n_kv_) : n_kv_;
  if (!has_mask()) return {0, {0, limit}};
  const auto i = static_cast<std::size_t>(row);
  if (const auto* window = std::get_if<masks::RowWindow>(&mask_))
    return {0, {window->start[i], std::min(window->stop[i], limit)}};
  if (const auto* sliding = std::get_if<masks::SlidingWindow>(&mask_))
    return {0, window_of(row, sliding->size, limit)};
  if (const auto* longformer = std::get_if<masks::Longformer>(&mask_))
    return sight_of(*longformer, row, limit);
  if (const auto* rows = std::get_if<masks::DistinctRows>(&mask_))
    return {0, {0, limit}, patterns_.row(rows->pattern_of_row[i])};
  return {0, {0, limit}};
}

void VisibleKeys::look(std::span<const index_t> rows, KeyRange keys, TileSight& tile) const {
  tile.rows_.clear();
  for (const index_t row : rows) tile.rows_.push_back(sight(row));
  tile.clip(keys);
  tile.find_segments(keys);
  if (tile.segments_.empty()) return;
  if (changes_.keys() > 0) {
    const index_t first = keys.first / kWordKeys;
    const index_t last = ceil_div(tile.segments_.back().last, kWordKeys), stride = last - first;
    tile.words_.resize(rows.size() * static_cast<std::size_t>(stride));
    changes_.fill(rows, first, last, tile.words_.data(), stride);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      tile.rows_[r].bits = tile.words_.data() + static_cast<index_t>(r) * stride;
      tile.rows_[r].base = first * kWordKeys;
    }
  }
  if (changes_.keys() > 0 || patterns_.words > 0) tile.cut_segments_to_bits();
}

}  // namespace convbasis
