#include "cpu/lowrank_change.h"

#include <algorithm>
#include <numeric>

namespace convbasis {
namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// The keys of the running sums; values of those that leave it are negative.
template <class T>
LowRankKeys<T> running_keys(const ChangeTiles& tiles, const View<const T, 2>& key,
                            const View<const T, 2>& value, std::span<const double> centre,
                            const LowRankScales<T>& scales, const Exec& exec) {
  LowRankKeys<T> keys(key, value, tiles.keys, centre, scales, exec);
  const index_t width = keys.groups.padded();
  for (index_t j = 0; j < keys.count; ++j)
    if (tiles.leaves[at(j)] != 0)
      for (index_t m = 0; m < width; ++m) keys.values[j * width + m] *= T(-1);
  return keys;
}

}  // namespace

template <class T>
LowRankChange<T>::LowRankChange(const Monomials& monomials, std::span<const double> coefficients,
                                ChangeTiles tiles, const View<const T, 2>& key,
                                const View<const T, 2>& value, std::span<const double> centre,
                                const LowRankScales<T>& scales, const Exec& exec)
    : monomials_(monomials),
      coefficients_(coefficients.begin(), coefficients.end()),
      tiles_(std::move(tiles)),
      single_keys_(key, value, tiles_.single_keys, centre, scales, exec),
      states_(monomials, monomials.weights(coefficients),
              running_keys(tiles_, key, value, centre, scales, exec),
              {tiles_.borders, tiles_.starts_anew}, ChunkStates<T>::Kind::prefix, exec) {}

template <class T>
void LowRankChange<T>::add(const View<const T, 2>& query, double scale, Rows<T> sums,
                           const Exec& exec) const {
  const index_t n_q = query.shape[0], rows = tiles_.rows_per_tile;
  parallel_for(exec, static_cast<index_t>(tiles_.common.size()), [&](index_t tile, int) {
    LowRankRows<T> block(monomials_, coefficients_, single_keys_);
    std::vector<index_t> numbers(at(kRowBlock));
    const index_t end = std::min((tile + 1) * rows, n_q);
    for (index_t first = tile * rows; first < end; first += kRowBlock) {
      const index_t last = std::min(first + kRowBlock, end);
      std::iota(numbers.begin(), numbers.end(), first);
      block.select(query, scale, std::span(numbers).first(at(last - first)));
      if (tiles_.common[at(tile)] > 0)
        block.add_state(states_.sum(0, tile + 1, nullptr), states_.group_size());
      add_single_keys(tile, first - tile * rows, last - tile * rows, block);
      block.add_to(sums);
    }
  });
}

/// For rows [first, last) of a tile.
template <class T>
void LowRankChange<T>::add_single_keys(index_t tile, index_t first, index_t last,
                                       LowRankRows<T>& block) const {
  std::vector<index_t> from, to;
  const index_t end = tiles_.single_borders[at(tile + 1)];
  for (index_t begin = tiles_.single_borders[at(tile)]; begin < end; begin += kSingleKeys) {
    from.clear();
    to.clear();
    for (index_t s = begin; s < std::min(begin + kSingleKeys, end); ++s) {
      from.push_back(std::clamp<index_t>(tiles_.from[at(s)] - first, 0, last - first));
      to.push_back(std::clamp<index_t>(tiles_.to[at(s)] - first, 0, last - first));
    }
    block.add_keys_by_rows(begin, from, to);
  }
}

template class LowRankChange<float>;
template class LowRankChange<double>;

}  // namespace convbasis
