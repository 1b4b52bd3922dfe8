#include "cpu/lowrank_part.h"

#include <algorithm>

namespace convbasis {
namespace {

constexpr index_t kKeysAtOnce = 64;  // of a tile of single weights

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

}  // namespace

template <class T>
LowRankPart<T>::LowRankPart(const Monomials& monomials, std::span<const double> coefficients,
                            KeyWindows windows, const View<const T, 2>& key,
                            const View<const T, 2>& value, std::span<const double> centre,
                            T value_scale, const Exec& exec)
    : monomials_(monomials),
      coefficients_(coefficients.begin(), coefficients.end()),
      windows_(std::move(windows)),
      keys_(key, value, windows_.keys, centre, value_scale, exec),
      plan_(plan()),
      states_(monomials, monomials.weights(coefficients), keys_, plan_.chunk, plan_.kind, exec) {}

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
    const index_t longer = round_up(ceil_div(keys_.count, chunks), kKeysAtOnce);
    return {std::max(chunk, longer), Kind::total,
            window_tiles(windows_, std::max(chunk, longer), kTileRows)};
  }
  std::vector<WindowTile> tiles = window_tiles(windows_, chunk, std::max(chunk, kTileRows));
  const bool is_prefix = std::all_of(tiles.begin(), tiles.end(),
                                     [](const WindowTile& tile) { return tile.first_chunk == 0; });
  return {chunk, is_prefix ? Kind::prefix : Kind::range, std::move(tiles)};
}

/// Products of one tile after another, kRowBlock rows at once.
template <class T>
class LowRankPart<T>::Worker {
 public:
  explicit Worker(const LowRankPart& part)
      : part_(part),
        query_(part.keys_.head_dim * kRowBlock),
        features_(part.monomials_.lower_count() * kRowBlock),
        weights_(kKeysAtOnce * kRowBlock),
        sums_(part.keys_.groups.padded() * kRowBlock),
        state_(part.plan_.kind == ChunkStates<T>::Kind::range ? part.states_.state_size() : 0) {}

  void add(const WindowTile& tile, const View<const T, 2>& query, double scale, Rows<T> sums) {
    const bool has_chunks = tile.first_chunk < tile.last_chunk;
    const T* state =
        has_chunks ? part_.states_.sum(tile.first_chunk, tile.last_chunk, state_.data()) : nullptr;
    for (index_t first = tile.first; first < tile.last; first += kRowBlock) {
      const index_t last = std::min(first + kRowBlock, tile.last);
      load(first, last, query, static_cast<T>(scale));
      std::fill_n(sums_.data(), sums_.size(), T(0));
      if (has_chunks) add_chunks(state);
      add_single_keys(tile, first, last);
      store(first, last, sums);
    }
  }

 private:
  void load(index_t first, index_t last, const View<const T, 2>& query, T scale) {
    const index_t head_dim = part_.keys_.head_dim;
    std::fill_n(query_.data(), query_.size(), T(0));
    for (index_t i = first; i < last; ++i)
      for (index_t c = 0; c < head_dim; ++c)
        query_[c * kRowBlock + i - first] = scale * query(part_.windows_.rows[at(i)], c);
  }

  /// The monomials of the highest degree are products of a variable with a run of lower ones, and
  /// are never stored.
  void add_chunks(const T* state) {
    const Monomials& monomials = part_.monomials_;
    const auto lower = monomials.lower_runs();
    kernels_.monomials_across(query_.data(), lower.data(), static_cast<index_t>(lower.size()),
                              features_.data());
    const ValueGroups& groups = part_.keys_.groups;
    for (index_t g = 0; g < groups.count; ++g, state += part_.states_.group_size()) {
      T* out = sums_.data() + g * groups.size * kRowBlock;
      kernels_.add_state_product(
          {features_.data(), nullptr, monomials.lower_count(), state, 0, out}, groups.size);
      for (const MonomialRun& run : monomials.top_runs())
        kernels_.add_state_product(
            {features_.data() + run.parent * kRowBlock, query_.data() + run.variable * kRowBlock,
             run.count, state, run.first, out},
            groups.size);
    }
  }

  /// The keys that not all rows of the tile see, weight by weight.
  void add_single_keys(const WindowTile& tile, index_t first, index_t last) {
    const index_t chunk = part_.plan_.chunk;
    const auto start = part_.windows_.start.begin(), stop = part_.windows_.stop.begin();
    const index_t lowest = *std::min_element(start + first, start + last);
    const index_t highest = *std::max_element(stop + first, stop + last);
    if (tile.first_chunk == tile.last_chunk) {
      add_keys(lowest, highest, first, last);
    } else {
      add_keys(lowest, tile.first_chunk * chunk, first, last);
      add_keys(tile.last_chunk * chunk, highest, first, last);
    }
  }

  void add_keys(index_t begin, index_t end, index_t first, index_t last) {
    const LowRankKeys<T>& keys = part_.keys_;
    T start[kRowBlock] = {}, stop[kRowBlock] = {};
    for (; begin < end; begin += kKeysAtOnce) {
      const index_t count = std::min(kKeysAtOnce, end - begin);
      for (index_t i = first; i < last; ++i) {
        const auto place = [&](index_t key) {
          return static_cast<T>(std::clamp<index_t>(key - begin, 0, count));
        };
        start[i - first] = place(part_.windows_.start[at(i)]);
        stop[i - first] = place(part_.windows_.stop[at(i)]);
      }
      kernels_.polynomial_tile({query_.data(), keys.keys.data() + begin * keys.head_dim,
                                keys.head_dim, count, keys.head_dim, part_.coefficients_.data(),
                                static_cast<index_t>(part_.coefficients_.size()) - 1, start, stop,
                                weights_.data()});
      for (index_t g = 0; g < keys.groups.count; ++g)
        kernels_.add_state_product(
            {weights_.data(), nullptr, count, keys.blocks.data() + g * keys.block_size(), begin,
             sums_.data() + g * keys.groups.size * kRowBlock},
            keys.groups.size);
    }
  }

  void store(index_t first, index_t last, Rows<T> sums) const {
    const index_t width = part_.keys_.groups.padded();
    for (index_t i = first; i < last; ++i) {
      T* row = sums.row(part_.windows_.rows[at(i)]);
      for (index_t m = 0; m < width; ++m) row[m] += sums_[m * kRowBlock + i - first];
    }
  }

  const LowRankKernels<T>& kernels_ = convbasis::kernels<T>().low_rank;
  const LowRankPart& part_;
  Buffer<T> query_, features_, weights_, sums_, state_;
};

template <class T>
void LowRankPart<T>::add(const View<const T, 2>& query, double scale, Rows<T> sums,
                         const Exec& exec) const {
  const index_t tiles = static_cast<index_t>(plan_.tiles.size());
  parallel_for(exec, tiles, [&](index_t item, int) {
    Worker(*this).add(plan_.tiles[at(item)], query, scale, sums);
  });
}

template class LowRankPart<float>;
template class LowRankPart<double>;

}  // namespace convbasis
