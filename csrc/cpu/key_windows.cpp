#include "cpu/key_windows.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "convbasis/error.h"

namespace convbasis {
namespace {

std::vector<index_t> first_numbers(index_t count) {
  std::vector<index_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), index_t{0});
  return numbers;
}

/// What the masks are turned into parts with.
class Builder {
 public:
  Builder(bool is_causal, index_t n_q, std::span<const index_t> keys)
      : is_causal_(is_causal), n_q_(n_q), keys_(keys) {}

  /// Keys for which keep(key) holds.
  template <class Keep>
  [[nodiscard]] std::vector<index_t> keys_if(const Keep& keep) const {
    std::vector<index_t> kept;
    std::copy_if(keys_.begin(), keys_.end(), std::back_inserter(kept), keep);
    return kept;
  }
  template <class Keep>
  [[nodiscard]] std::vector<index_t> rows_if(const Keep& keep) const {
    std::vector<index_t> kept;
    for (index_t i = 0; i < n_q_; ++i)
      if (keep(i)) kept.push_back(i);
    return kept;
  }
  [[nodiscard]] std::vector<index_t> all_rows() const { return first_numbers(n_q_); }
  [[nodiscard]] std::vector<index_t> all_keys() const { return {keys_.begin(), keys_.end()}; }

  /// window(row) gives [start, stop) in numbers of keys; rows that see nothing are left out.
  template <class Window>
  void add(std::vector<index_t> rows, std::vector<index_t> keys, const Window& window) {
    if (rows.empty() || keys.empty()) return;
    KeyWindows part{{}, std::move(keys), {}, {}};
    const index_t count = static_cast<index_t>(part.keys.size());
    const bool is_every_key = part.keys.back() + 1 == count;
    const auto place = [&](index_t key) {
      if (is_every_key) return std::clamp<index_t>(key, 0, count);
      return std::lower_bound(part.keys.begin(), part.keys.end(), key) - part.keys.begin();
    };
    for (std::vector<index_t>* list : {&part.rows, &part.start, &part.stop})
      list->reserve(rows.size());
    for (const index_t row : rows) {
      auto [start, stop] = window(row);
      if (is_causal_) stop = std::min(stop, row + 1);
      start = place(start);
      stop = place(stop);
      if (start >= stop) continue;
      part.rows.push_back(row);
      part.start.push_back(start);
      part.stop.push_back(stop);
    }
    if (!part.rows.empty()) parts_.push_back(std::move(part));
  }
  void add_all(std::vector<index_t> rows, std::vector<index_t> keys) {
    const index_t end = keys.empty() ? 0 : keys.back() + 1;
    add(std::move(rows), std::move(keys), [end](index_t) { return std::pair(index_t{0}, end); });
  }
  void add_sliding(std::vector<index_t> rows, std::vector<index_t> keys, index_t size) {
    const index_t end = keys_.empty() ? 0 : keys_.back() + 1;
    add(std::move(rows), std::move(keys), [end, size](index_t row) {
      return std::pair(size > row ? index_t{0} : row - size + 1,
                       size < end - row ? row + size : end);
    });
  }

  std::vector<KeyWindows> take() { return std::move(parts_); }

 private:
  bool is_causal_;
  index_t n_q_;
  std::span<const index_t> keys_;
  std::vector<KeyWindows> parts_;
};

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// The listed numbers of each pattern.
std::vector<std::vector<index_t>> by_pattern(std::span<const index_t> pattern_of,
                                             const std::vector<index_t>& listed, index_t patterns) {
  std::vector<std::vector<index_t>> result(at(patterns));
  for (const index_t i : listed) result[at(pattern_of[at(i)])].push_back(i);
  return result;
}

struct Visitor {
  Builder& build;

  void operator()(std::monostate) const { build.add_all(build.all_rows(), build.all_keys()); }
  void operator()(const masks::RowWindow& mask) const {
    build.add(build.all_rows(), build.all_keys(),
              [&](index_t row) { return std::pair(mask.start[at(row)], mask.stop[at(row)]); });
  }
  void operator()(const masks::SlidingWindow& mask) const {
    build.add_sliding(build.all_rows(), build.all_keys(), mask.size);
  }
  void operator()(const masks::Longformer& mask) const {
    const auto is_local = [&mask](index_t token) {
      return !std::binary_search(mask.global_tokens.begin(), mask.global_tokens.end(), token);
    };
    const auto is_global = [&](index_t token) { return !is_local(token); };
    build.add_sliding(build.rows_if(is_local), build.keys_if(is_local), mask.window);
    build.add_all(build.rows_if(is_local), build.keys_if(is_global));
    build.add_all(build.rows_if(is_global), build.all_keys());
  }
  void operator()(const masks::DistinctRows& mask) const {
    auto rows = by_pattern(mask.pattern_of_row, build.all_rows(), mask.patterns.shape[0]);
    for (index_t p = 0; p < mask.patterns.shape[0]; ++p)
      build.add_all(std::move(rows[at(p)]),
                    build.keys_if([&](index_t j) { return mask.patterns(p, j); }));
  }
  void operator()(const masks::DistinctColumns& mask) const {
    auto keys = by_pattern(mask.pattern_of_column, build.all_keys(), mask.patterns.shape[0]);
    for (index_t p = 0; p < mask.patterns.shape[0]; ++p)
      build.add_all(build.rows_if([&](index_t i) { return mask.patterns(p, i); }),
                    std::move(keys[at(p)]));
  }
  void operator()(const masks::RowChange&) const {}
};

}  // namespace

std::vector<KeyWindows> key_windows(const Mask& mask, bool is_causal, index_t n_q,
                                    std::span<const index_t> keys) {
  Builder build(is_causal, n_q, keys);
  std::visit(Visitor{build}, mask);
  return build.take();
}

KeyWindows transposed(const char* function, const KeyWindows& part) {
  const auto& [rows, keys, start, stop] = part;
  if (!std::is_sorted(start.begin(), start.end()) || !std::is_sorted(stop.begin(), stop.end()))
    throw Unsupported("[" + std::string(function) +
                      "] mask has windows that fall from row to row; expected both ends to rise, "
                      "or exact attention, which takes any; got a RowWindow in another order");
  KeyWindows result{{}, rows, {}, {}};
  for (index_t j = 0; j < static_cast<index_t>(keys.size()); ++j) {
    // The rows whose windows have begun, less those whose windows have ended.
    const index_t begun = std::upper_bound(start.begin(), start.end(), j) - start.begin();
    const index_t ended = std::upper_bound(stop.begin(), stop.end(), j) - stop.begin();
    if (ended >= begun) continue;
    result.rows.push_back(keys[at(j)]);
    result.start.push_back(ended);
    result.stop.push_back(begun);
  }
  return result;
}

namespace {

/// Sorts the rows of a part by the chunk where their windows start, then by where they stop.
void sort_windows(KeyWindows& part, index_t chunk) {
  std::vector<index_t> order = first_numbers(static_cast<index_t>(part.rows.size()));
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
    const index_t chunk_a = part.start[at(a)] / chunk, chunk_b = part.start[at(b)] / chunk;
    return chunk_a != chunk_b ? chunk_a < chunk_b : part.stop[at(a)] < part.stop[at(b)];
  });
  for (std::vector<index_t>* list : {&part.rows, &part.start, &part.stop}) {
    std::vector<index_t> sorted(list->size());
    std::transform(order.begin(), order.end(), sorted.begin(),
                   [list](index_t i) { return (*list)[at(i)]; });
    *list = std::move(sorted);
  }
}

}  // namespace

std::vector<WindowTile> window_tiles(KeyWindows& part, index_t chunk, index_t most) {
  if (!std::is_sorted(part.start.begin(), part.start.end()) ||
      !std::is_sorted(part.stop.begin(), part.stop.end()))
    sort_windows(part, chunk);
  const index_t keys = static_cast<index_t>(part.keys.size());
  const index_t chunks = (keys + chunk - 1) / chunk;
  std::vector<WindowTile> tiles;
  index_t last_start = 0, first_stop = 0;  // of the tile that grows
  for (index_t i = 0; i < static_cast<index_t>(part.rows.size()); ++i) {
    const index_t start = part.start[at(i)], stop = part.stop[at(i)];
    const auto with_row = [&](WindowTile tile) {
      tile.last = i + 1;
      tile.start = std::min(tile.start, start);
      tile.stop = std::max(tile.stop, stop);
      const index_t latest = std::max(last_start, start), earliest = std::min(first_stop, stop);
      tile.first_chunk = (latest + chunk - 1) / chunk;
      tile.last_chunk = earliest == keys ? chunks : earliest / chunk;
      if (tile.last_chunk <= tile.first_chunk) tile.first_chunk = tile.last_chunk = 0;
      return tile;
    };
    const auto single_keys = [&](const WindowTile& tile) {
      const index_t common = std::min(tile.last_chunk * chunk, keys) - tile.first_chunk * chunk;
      return tile.stop - tile.start - std::max<index_t>(common, 0);
    };
    if (!tiles.empty() && i - tiles.back().first < most) {
      const WindowTile grown = with_row(tiles.back());
      if (single_keys(grown) <= std::max(4 * chunk, single_keys(tiles.back()))) {
        tiles.back() = grown;
        last_start = std::max(last_start, start);
        first_stop = std::min(first_stop, stop);
        continue;
      }
    }
    last_start = start;
    first_stop = stop;
    tiles.push_back(with_row({i, i + 1, 0, 0, start, stop}));
  }
  return tiles;
}

}  // namespace convbasis
