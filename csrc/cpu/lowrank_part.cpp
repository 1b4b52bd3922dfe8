#include "cpu/lowrank_part.h"

#include <algorithm>
#include <bit>

namespace convbasis {
namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

}  // namespace

template <class T>
LowRankPart<T>::LowRankPart(const Monomials& monomials, std::span<const double> coefficients,
                            KeyWindows windows, const View<const T, 2>& key,
                            const View<const T, 2>& value, std::span<const double> centre,
                            const LowRankScales<T>& scales, const Exec& exec)
    : monomials_(monomials),
      coefficients_(coefficients.begin(), coefficients.end()),
      windows_(std::move(windows)),
      keys_(key, value, windows_.keys, centre, scales, exec),
      plan_(plan()),
      states_(monomials, monomials.weights(coefficients), keys_,
              Chunks::even(keys_.count, plan_.chunk), plan_.kind, exec) {}

template <class T>
typename LowRankPart<T>::Plan LowRankPart<T>::plan() {
  using Kind = typename ChunkStates<T>::Kind;
  constexpr index_t kTileRows = 128;
  const index_t chunk = chunk_rows(monomials_, keys_.groups);
  const auto& [rows, keys, start, stop] = windows_;
  const bool sees_all =
      std::all_of(start.begin(), start.end(), [](index_t i) { return i == 0; }) &&
      std::all_of(stop.begin(), stop.end(), [this](index_t i) { return i == keys_.count; });
  if (sees_all) {
    constexpr index_t kNumbers = index_t{1} << 23;  // that the sums may take
    const index_t state = monomials_.padded() * keys_.groups.padded();
    const index_t chunks = std::clamp<index_t>(kNumbers / state, 4, 64);
    const index_t longer = round_up(ceil_div(keys_.count, chunks), kSingleKeys);
    return {std::max(chunk, longer), Kind::total,
            window_tiles(windows_, std::max(chunk, longer), kTileRows)};
  }
  std::vector<WindowTile> tiles = window_tiles(windows_, chunk, std::max(chunk, kTileRows));
  const bool is_prefix = std::all_of(tiles.begin(), tiles.end(),
                                     [](const WindowTile& tile) { return tile.first_chunk == 0; });
  if (is_prefix) return {chunk, Kind::prefix, std::move(tiles)};
  // A block of rows costs as much as a full one: sums of their own cost few rows much.
  const auto nodes = static_cast<index_t>(std::bit_width(at(ceil_div(keys_.count, chunk))));
  const auto sums = static_cast<index_t>(tiles.size());
  const bool by_nodes = sums * (nodes + kRowBlock) > static_cast<index_t>(rows.size()) * nodes;
  return {chunk, Kind::range, std::move(tiles), by_nodes};
}

/// Products with the nodes of the tree that make up the ranges of the tiles, one after another, so
/// that all rows of a node are taken together: sums for single rows would each read many nodes. A
/// range has at most one node on each side of a level, so no two threads meet in a row.
template <class T>
void LowRankPart<T>::add_nodes(const View<const T, 2>& query, double scale, Rows<T> sums,
                               const Exec& exec) const {
  std::vector<WindowTile> ranges = plan_.tiles;
  for (WindowTile& range : ranges) {
    range.first_chunk += states_.leaves();
    range.last_chunk += states_.leaves();
  }
  for (index_t level = states_.leaves(); level > 0; level /= 2) {
    std::vector<Use> left, right;
    for (index_t t = 0; t < static_cast<index_t>(ranges.size()); ++t) {
      index_t &first = ranges[at(t)].first_chunk, &last = ranges[at(t)].last_chunk;
      if (first < last && first % 2 == 1) left.push_back({first++, t});
      if (first < last && last % 2 == 1) right.push_back({--last, t});
      first /= 2;
      last /= 2;
    }
    add_uses(std::move(left), query, scale, sums, exec);
    add_uses(std::move(right), query, scale, sums, exec);
  }
}

template <class T>
void LowRankPart<T>::add_uses(std::vector<Use> uses, const View<const T, 2>& query, double scale,
                              Rows<T> sums, const Exec& exec) const {
  constexpr index_t kTaskRows = 8 * kRowBlock;
  struct Task {
    index_t node, first, last;
  };
  std::stable_sort(uses.begin(), uses.end(),
                   [](const Use& a, const Use& b) { return a.node < b.node; });
  std::vector<index_t> rows;
  std::vector<Task> tasks;
  for (const Use& use : uses)
    for (index_t i = plan_.tiles[at(use.tile)].first; i < plan_.tiles[at(use.tile)].last; ++i) {
      const auto next = static_cast<index_t>(rows.size());
      if (tasks.empty() || tasks.back().node != use.node || next - tasks.back().first == kTaskRows)
        tasks.push_back({use.node, next, next});
      rows.push_back(windows_.rows[at(i)]);
      tasks.back().last = next + 1;
    }
  parallel_for(exec, static_cast<index_t>(tasks.size()), [&](index_t item, int) {
    const auto [node, begin, end] = tasks[at(item)];
    LowRankRows<T> block(monomials_, coefficients_, keys_);
    for (index_t first = begin; first < end; first += kRowBlock) {
      const index_t last = std::min(first + kRowBlock, end);
      block.select(query, scale,
                   std::span<const index_t>(rows).subspan(at(first), at(last - first)));
      block.add_state(states_.node(node), states_.group_size());
      block.add_to(sums);
    }
  });
}

template <class T>
void LowRankPart<T>::add(const View<const T, 2>& query, double scale, Rows<T> sums,
                         const Exec& exec) const {
  if (plan_.by_nodes) add_nodes(query, scale, sums, exec);
  const bool has_ranges = plan_.kind == ChunkStates<T>::Kind::range;
  parallel_for(exec, static_cast<index_t>(plan_.tiles.size()), [&](index_t item, int) {
    const WindowTile& tile = plan_.tiles[at(item)];
    LowRankRows<T> block(monomials_, coefficients_, keys_);
    Buffer<T> scratch(has_ranges ? states_.state_size() : 0);
    const T* state = tile.first_chunk < tile.last_chunk && !plan_.by_nodes
                         ? states_.sum(tile.first_chunk, tile.last_chunk, scratch.data())
                         : nullptr;
    for (index_t first = tile.first; first < tile.last; first += kRowBlock) {
      const index_t last = std::min(first + kRowBlock, tile.last);
      block.select(query, scale, std::span(windows_.rows).subspan(at(first), at(last - first)));
      if (state != nullptr) block.add_state(state, states_.group_size());
      add_single_keys(tile, first, last, block);
      block.add_to(sums);
    }
  });
}

/// The keys that not all rows of the tile see, weight by weight, for rows [first, last).
template <class T>
void LowRankPart<T>::add_single_keys(const WindowTile& tile, index_t first, index_t last,
                                     LowRankRows<T>& block) const {
  const auto start = std::span(windows_.start).subspan(at(first), at(last - first));
  const auto stop = std::span(windows_.stop).subspan(at(first), at(last - first));
  const auto add = [&](index_t begin, index_t end) {
    for (; begin < end; begin += kSingleKeys)
      block.add_keys(begin, std::min(begin + kSingleKeys, end), start, stop);
  };
  const index_t lowest = *std::min_element(start.begin(), start.end());
  const index_t highest = *std::max_element(stop.begin(), stop.end());
  if (tile.first_chunk == tile.last_chunk) {
    add(lowest, highest);
  } else {
    add(lowest, tile.first_chunk * plan_.chunk);
    add(tile.last_chunk * plan_.chunk, highest);
  }
}

template class LowRankPart<float>;
template class LowRankPart<double>;

}  // namespace convbasis
