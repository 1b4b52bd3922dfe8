#include "convbasis/polynomial.h"
#include "core/buffer.h"
#include "cuda/lowrank_rows.h"
#include "cuda/lowrank_tile.h"
#include "cuda/numeric.h"

namespace convbasis::cuda {
namespace {

/// A tile of rows by channels.
template <class T, class Tile, int Width>
struct AttendRows {
  static constexpr int kCoefficients = kMostDegree + 1;
  static constexpr std::size_t kSharedBytes = Tile::kSharedBytes + sizeof(T) * kCoefficients;
  static constexpr int kLeastBlocks = 1;
  using Sums = PerThread<typename Tile::Sums, kTileThreads>;
  struct Shared {
    T *left, *right, *coefficients;
  };
  struct Place {
    index_t item, head, row, channel;
  };

  LowRankHeads<T> heads;
  MonomialTable monomials;
  const T* states;
  index_t chunk, chunks, keys, stride;
  Array<T> query, value;
  RowResults<T> results;
  std::uint32_t row_tiles, channel_tiles;
  double scale;
  bool is_causal;

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    T* left = reinterpret_cast<T*>(block.shared);
    T* right = left + Tile::kDepth * Tile::kLeft;
    const Shared shared{left, right, right + Tile::kDepth * Tile::kRight};
    auto number = static_cast<std::uint32_t>(block.index);
    const index_t channel = index_t{number % channel_tiles} * Width;
    number /= channel_tiles;
    const index_t row = index_t{number % row_tiles} * Tile::kRows, item = number / row_tiles;
    const Place place{item, heads.listed[item], row, channel};
    const index_t own = static_cast<std::uint32_t>(row) / static_cast<std::uint32_t>(chunk);
    const index_t slot = is_causal && own < chunks ? own : chunks;  // the chunks before are summed

    Sums sums;
    block.each(kTileThreads, [&](int t) {
      sums[t].clear();
      if (t <= heads.degree)
        shared.coefficients[t] = static_cast<T>(heads.coefficients[item * (heads.degree + 1) + t]);
    });
    if (slot > 0) add_state(block, place, slot, shared, sums);
    if (is_causal) {
      const index_t end = row + Tile::kRows < keys ? row + Tile::kRows : keys;
      for (index_t first = slot * chunk; first < end; first += Width) {
        weigh(block, place, first, shared);
        add_values(block, place, first, end, shared, sums);
      }
    }
    finish(block, place, shared, sums);
  }

  CONVBASIS_DEVICE void add_state(Block<kTileThreads>& block, const Place& place, index_t slot,
                                  const Shared& shared, Sums& sums) const {
    const T* state = states + (place.item * (chunks + 1) + slot) * monomials.padded * stride;
    for (index_t first = 0; first < monomials.padded; first += Tile::kDepth) {
      form_features(block, place, first, shared.left);
      block.each(Tile::kDepth * Tile::kRight, [&](int i) {
        const int column = i % Tile::kRight;
        const index_t c = column < Width ? place.channel + column : value.channels;
        const bool inside = column < Width ? c < value.channels : column == Width;
        shared.right[i] = inside ? state[(first + i / Tile::kRight) * stride + c] : T(0);
      });
      block.each(kTileThreads, [&](int t) {
        Tile::add(t, Tile::kDepth, shared.left, shared.right, sums[t].tile);
        Tile::add_totals(t, Tile::kDepth, shared.left, shared.right, sums[t]);
      });
    }
  }

  /// left(feature, row), kQuad rows at a time.
  CONVBASIS_DEVICE void form_features(Block<kTileThreads>& block, const Place& place, index_t first,
                                      T* left) const {
    constexpr int kRowQuads = Tile::kRows / kQuad;
    const T* from = queries_of(place);
    block.each(Tile::kDepth * kRowQuads, [&](int i) {
      const int feature = i / kRowQuads, rows = i % kRowQuads * kQuad;
      const std::int32_t* factors = monomials.factors + first + feature;
      Quad<T> product{{T(1), T(1), T(1), T(1)}};
      for (index_t slot = 0; slot < monomials.slots; ++slot) {
        const index_t variable = factors[slot * monomials.padded];
        const auto other =
            *reinterpret_cast<const Quad<T>*>(from + variable * heads.query_tokens + rows);
        CONVBASIS_UNROLL
        for (int k = 0; k < kQuad; ++k) product.of[k] *= other.of[k];
      }
      *reinterpret_cast<Quad<T>*>(left + feature * Tile::kLeft + rows) = product;
    });
  }
  [[nodiscard]] CONVBASIS_DEVICE const T* queries_of(const Place& place) const {
    return heads.queries + place.item * (heads.head_dim + 1) * heads.query_tokens + place.row;
  }

  /// left(key, row) = the polynomial of the logit where it is seen, for keys [first, first +
  /// Width).
  CONVBASIS_DEVICE void weigh(Block<kTileThreads>& block, const Place& place, index_t first,
                              const Shared& shared) const {
    const T* from = queries_of(place);
    const T* keys_from = heads.keys + place.item * (heads.head_dim + 1) * heads.key_tokens + first;
    PerThread<TileSums<T>, kTileThreads> dots;
    block.each(kTileThreads, [&](int t) { dots[t].clear(); });
    for (index_t c = 0; c < heads.head_dim; c += Tile::kDepth) {
      const int depth =
          static_cast<int>(heads.head_dim - c < Tile::kDepth ? heads.head_dim - c : Tile::kDepth);
      block.each(depth * Tile::kRows, [&](int i) {
        const int at = i / Tile::kRows, row = i % Tile::kRows;
        shared.left[at * Tile::kLeft + row] = from[(c + at) * heads.query_tokens + row];
      });
      block.each(depth * Width, [&](int i) {
        const int at = i / Width, key = i % Width;
        shared.right[at * Tile::kRight + key] = keys_from[(c + at) * heads.key_tokens + key];
      });
      block.each(kTileThreads,
                 [&](int t) { Tile::add(t, depth, shared.left, shared.right, dots[t]); });
    }
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int k = 0; k < kQuad; ++k) {
        const int key = Tile::column(t) + k;
        CONVBASIS_UNROLL
        for (int r = 0; r < kTileRows; ++r) {
          T weight = 0;
          // Unrolled, doubles would spill on sm_80.
          CONVBASIS_NO_UNROLL
          for (int p = static_cast<int>(heads.degree); p >= 0; --p)
            weight = weight * dots[t].of[r][k] + shared.coefficients[p];
          const bool seen = first + key <= place.row + Tile::row(t) + r;
          shared.left[key * Tile::kLeft + Tile::row(t) + r] = seen ? weight : T(0);
        }
      }
    });
  }

  CONVBASIS_DEVICE void add_values(Block<kTileThreads>& block, const Place& place, index_t first,
                                   index_t end, const Shared& shared, Sums& sums) const {
    block.each(Width * Tile::kRight, [&](int i) {
      const int column = i % Tile::kRight;
      const index_t j = first + i / Tile::kRight, c = place.channel + column;
      T number = 0;
      if (j < end && column == Width) number = 1;
      if (j < end && column < Width && c < value.channels)
        number = heads.scales[place.item].value * value.load(place.head, j, c);
      shared.right[i] = number;
    });
    block.each(kTileThreads, [&](int t) {
      Tile::add(t, Width, shared.left, shared.right, sums[t].tile);
      Tile::add_totals(t, Width, shared.left, shared.right, sums[t]);
    });
  }

  CONVBASIS_DEVICE void finish(Block<kTileThreads>& block, const Place& place, const Shared& shared,
                               Sums& sums) const {
    auto* totals = reinterpret_cast<double*>(shared.right);
    const Array<T>& out = results.out;
    Tile::sum_totals(block, sums, shared.left, totals);
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const int at = Tile::row(t) + r;
        const double total = totals[at];
        const T unscale = heads.scales[place.item].unscale;
        const T share = total > 0 ? static_cast<T>(unscale / total) : T(0);
        const T factor = results.divides ? share : unscale;
        CONVBASIS_UNROLL
        for (int k = 0; k < kQuad; ++k) {
          const index_t c = place.channel + Tile::column(t) + k;
          if (place.row + at < out.rows && c < out.channels)
            out.store(place.head, place.row + at, c, factor * sums[t].tile.of[r][k]);
        }
      }
    });
    block.each(Tile::kRows, [&](int i) {
      const index_t row = place.row + i;
      if (place.channel > 0 || row >= out.rows) return;
      const double total = totals[i];
      const bool is_good = total > 0 && is_finite(total);
      const index_t flat = place.head * out.rows + row;
      if (results.sums != nullptr) results.sums[flat] = total;
      if (results.spoiled != nullptr && !is_good && keys > 0) results.spoiled[flat] = 1;
      if (results.lse.data == nullptr) return;
      double taken_off = 0;
      for (index_t c = 0; c < heads.head_dim; ++c)
        taken_off += static_cast<double>(query.load(place.head, row, c)) *
                     heads.centres[place.item * heads.head_dim + c];
      const double log_sum = is_good ? log(total) + scale * taken_off : -INFINITY;
      results.lse.store(place.head, row, 0, static_cast<T>(log_sum));
    });
  }
};

}  // namespace

template <class T>
void attend_rows(const LowRankHeads<T>& heads, const ChunkStates<T>& states, const Array<T>& query,
                 const Array<T>& value, bool is_causal, double scale, const RowResults<T>& results,
                 const Stream& stream) {
  with_tile<T>(value.channels, [&]<int Width>(LowRankTile<T, Width>) {
    using Tile = LowRankTile<T, Width>;
    using Kernel = AttendRows<T, Tile, Width>;
    const index_t row_tiles = ceil_div(results.out.rows, Tile::kRows);
    const index_t channel_tiles =
        std::max(ceil_div(value.channels, Width), index_t{1});  // lse without channels
    launch_blocks<kTileThreads>(
        stream, heads.count * row_tiles * channel_tiles, Kernel::kSharedBytes,
        Kernel{heads, states.monomials, states.memory.data(), states.chunk, states.chunks,
               states.keys, states.stride, query, value, results,
               static_cast<std::uint32_t>(row_tiles), static_cast<std::uint32_t>(channel_tiles),
               scale, is_causal});
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                            \
  template void attend_rows(const LowRankHeads<T>&, const ChunkStates<T>&, const Array<T>&, \
                            const Array<T>&, bool, double, const RowResults<T>&, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
