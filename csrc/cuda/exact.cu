#include "core/buffer.h"
#include "core/shape.h"
#include "cuda/buffer.h"
#include "cuda/element.h"
#include "cuda/numeric.h"
#include "cuda/register_tile.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = kTileThreads, kParts = kThreads / kTile;
constexpr int kStride = kTile + kQuad;  // neighbouring rows begin in other banks

/// kTile query rows of one head and Tiles * kTile channels of their output. Keys come kTile at a
/// time; their logits become weights in shared memory, relative to the largest logit so far. Each
/// row has kParts threads for its maxima and sums.
template <class T, int Tiles>
struct Attend {
  static constexpr int kDepth = sizeof(T) == 4 ? 32 : 8;  // 48 KiB hold it all
  static constexpr int kChannels = Tiles * kTile, kOperands = 2 * kDepth * kStride;
  static constexpr std::size_t kSharedBytes =
      sizeof(T) * (kOperands + kTile * kStride + kTile + kThreads);
  static_assert(kDepth * kChannels <= kOperands && kSharedBytes <= 48 << 10);

  struct Shared {
    T* queries;  // (kDepth, kStride)
    T* keys;     // (kDepth, kStride)
    T* values;   // (kDepth, kChannels), after the two, in their place
    T* weights;  // (keys, kStride)
    T* shrink;   // what a row's sums are to be multiplied by
    T* tops;     // the largest logit that a thread has seen
  };
  struct Row {
    T top;
    double sum;
  };
  struct Sums {
    TileSums<T> tile[Tiles];
  };

  Array<T> query, key, value, out, lse;
  const std::int32_t* heads;  // null: all
  index_t row_tiles, channel_tiles;
  T scale;
  bool is_causal;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    T* memory = reinterpret_cast<T*>(block.shared);
    T* after = memory + kOperands + kTile * kStride;
    const Shared shared{memory,       memory + kDepth * kStride, memory, memory + kOperands, after,
                        after + kTile};
    const index_t channel = block.index % channel_tiles * kChannels;
    const index_t item = block.index / channel_tiles;
    const index_t head = heads == nullptr ? item / row_tiles : heads[item / row_tiles];
    const index_t row = (row_tiles - 1 - item % row_tiles) * kTile;  // the longest rows first
    const index_t end = is_causal && row + kTile < key.rows ? row + kTile : key.rows;

    PerThread<Row, kThreads> rows;
    PerThread<Sums, kThreads> sums;
    block.each(kThreads, [&](int t) {
      rows[t] = {-static_cast<T>(INFINITY), 0.0};
      CONVBASIS_UNROLL
      for (int i = 0; i < Tiles; ++i) sums[t].tile[i].clear();
    });
    for (index_t first = 0; first < end; first += kTile) {
      form_logits(block, head, row, first, shared);
      weigh(block, shared, rows);
      add_values(block, head, first, end, channel, shared, sums);
    }
    finish(block, head, row, channel, shared, rows, sums);
  }

  /// weights(j, i) = the logit of row `row` + i and key `first` + j, -inf where it is not seen.
  CONVBASIS_DEVICE void form_logits(Block<kThreads>& block, index_t head, index_t row,
                                    index_t first, const Shared& shared) const {
    PerThread<TileSums<T>, kThreads> dots;
    block.each(kThreads, [&](int t) { dots[t].clear(); });
    for (index_t c = 0; c < query.channels; c += kDepth) {
      // A warp reads 8 neighbouring channels of 4 rows, and writes to as many banks as it has
      // threads.
      block.each(kDepth * kTile, [&](int i) {
        const int depth = i % 8 + i / 32 % (kDepth / 8) * 8, at = i / 8 % 4 + i / (4 * kDepth) * 4;
        const bool inside = c + depth < query.channels;
        shared.queries[depth * kStride + at] =
            inside && row + at < query.rows ? query.load(head, row + at, c + depth) : T(0);
        shared.keys[depth * kStride + at] =
            inside && first + at < key.rows ? key.load(head, first + at, c + depth) : T(0);
      });
      block.each(kThreads, [&](int t) {
        add_products<kStride, kStride>(t, kDepth, shared.queries, shared.keys, dots[t]);
      });
    }
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int k = 0; k < kQuad; ++k) {
        const index_t j = first + tile_column(t) + k, i = row + tile_row(t);
        Quad<T> logits[kTileRows / kQuad];
        CONVBASIS_UNROLL
        for (int r = 0; r < kTileRows; ++r) {
          const bool seen = j < key.rows && (!is_causal || j <= i + r);
          logits[r / kQuad].of[r % kQuad] =
              seen ? scale * dots[t].of[r][k] : -static_cast<T>(INFINITY);
        }
        T* to = shared.weights + (tile_column(t) + k) * kStride + tile_row(t);
        CONVBASIS_UNROLL
        for (int q = 0; q < kTileRows / kQuad; ++q) reinterpret_cast<Quad<T>*>(to)[q] = logits[q];
      }
    });
  }

  /// Logits to weights. A row sees a key of the first tile, so that its largest logit is a number
  /// from then on; a logit that overflowed, or is NaN, makes the row's sum NaN.
  CONVBASIS_DEVICE void weigh(Block<kThreads>& block, const Shared& shared,
                              PerThread<Row, kThreads>& rows) const {
    constexpr int kKeys = kTile / kParts;
    block.each(kThreads, [&](int t) {
      const T* logits = shared.weights + t / kTile * kKeys * kStride + t % kTile;
      T top = rows[t].top;
      for (int k = 0; k < kKeys; ++k) top = larger_of(top, logits[k * kStride]);
      shared.tops[t] = top;
    });
    block.each(kThreads, [&](int t) {
      T* weights = shared.weights + t / kTile * kKeys * kStride + t % kTile;
      const T top = larger_of(shared.tops[t % kTile], shared.tops[t % kTile + kTile]);
      const T shrink = exponential(rows[t].top - top);  // exp(-inf) = 0 at the first tile
      T sum = 0;
      for (int k = 0; k < kKeys; ++k) {
        const T weight = exponential(weights[k * kStride] - top);
        weights[k * kStride] = weight;
        sum += weight;
      }
      rows[t] = {top, rows[t].sum * static_cast<double>(shrink) + static_cast<double>(sum)};
      if (t < kTile) shared.shrink[t] = shrink;
    });
  }

  CONVBASIS_DEVICE void add_values(Block<kThreads>& block, index_t head, index_t first, index_t end,
                                   index_t channel, const Shared& shared,
                                   PerThread<Sums, kThreads>& sums) const {
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const T shrink = shared.shrink[tile_row(t) + r];
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i) CONVBASIS_UNROLL
        for (int c = 0; c < kQuad; ++c) sums[t].tile[i].of[r][c] *= shrink;
      }
    });
    for (int k = 0; k < kTile && first + k < end; k += kDepth) {
      block.each(kDepth * kChannels, [&](int i) {
        const index_t j = first + k + i / kChannels, c = channel + i % kChannels;
        shared.values[i] = j < end && c < value.channels ? value.load(head, j, c) : T(0);
      });
      block.each(kThreads, [&](int t) {
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i)
          add_products<kStride, kChannels>(t, kDepth, shared.weights + k * kStride,
                                           shared.values + i * kTile, sums[t].tile[i]);
      });
    }
  }

  CONVBASIS_DEVICE void finish(Block<kThreads>& block, index_t head, index_t row, index_t channel,
                               const Shared& shared, PerThread<Row, kThreads>& rows,
                               PerThread<Sums, kThreads>& sums) const {
    auto* totals = reinterpret_cast<double*>(shared.queries);
    block.each(kThreads, [&](int t) { totals[t] = rows[t].sum; });
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const int at = tile_row(t) + r;
        const T factor =
            key.rows > 0 ? static_cast<T>(1 / (totals[at] + totals[at + kTile])) : T(0);
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i) {
          CONVBASIS_UNROLL
          for (int k = 0; k < kQuad; ++k) {
            const index_t c = channel + i * kTile + tile_column(t) + k;
            if (row + at < out.rows && c < out.channels)
              out.store(head, row + at, c, factor * sums[t].tile[i].of[r][k]);
          }
        }
      }
      if (t >= kTile || row + t >= out.rows || channel > 0 || lse.data == nullptr) return;
      const double log_sum = static_cast<double>(rows[t].top) + log(totals[t] + totals[t + kTile]);
      lse.store(head, row + t, 0, key.rows > 0 ? static_cast<T>(log_sum) : rows[t].top);
    });
  }
};

template <int Tiles, class T>
void attend(const Array<T>& query, const Array<T>& key, const Array<T>& value, const Array<T>& out,
            const Array<T>& lse, double scale, bool is_causal, index_t heads,
            const std::int32_t* listed, const Stream& stream) {
  using Kernel = Attend<T, Tiles>;
  const index_t row_tiles = ceil_div(out.rows, kTile);
  const index_t channel_tiles =
      std::max(ceil_div(out.channels, Kernel::kChannels), index_t{1});  // lse without channels
  launch_blocks<kThreads>(stream, heads * row_tiles * channel_tiles, Kernel::kSharedBytes,
                          Kernel{query, key, value, out, lse, listed, row_tiles, channel_tiles,
                                 static_cast<T>(scale), is_causal});
}

}  // namespace

template <class E>
void exact_attention(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                     View<E, 4> out, View<Compute<E>, 3> lse, const AttentionOptions& options,
                     std::span<const index_t> heads, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "exact_attention";
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match query");
  const HeadList list(kName, heads, batch * query_heads);
  require(std::holds_alternative<std::monostate>(options.mask), kName,
          "mask is given; expected none: on a GPU, is_causal alone hides keys");
  if (batch * query_heads * n == 0) return;

  const DeviceGuard guard(stream.device);
  const std::vector<std::int32_t> numbers(heads.begin(), heads.end());
  const DeviceBuffer<std::int32_t> listed = upload<std::int32_t>(stream, numbers);
  const auto of = [&](const auto& view) { return array_of(view, query_heads); };
  const double scale = scale_of(options, head_dim);
  // Logits are formed once for all channels of a thread block; registers hold 128 floats' worth.
  if (sizeof(T) == 4 && value.shape[3] > kTile) {
    attend<sizeof(T) == 4 ? 2 : 1>(of(query), of(key), of(value), of(out),
                                   column_of(lse, query_heads), scale, options.is_causal,
                                   list.size(), listed.data(), stream);
  } else {
    attend<1>(of(query), of(key), of(value), of(out), column_of(lse, query_heads), scale,
              options.is_causal, list.size(), listed.data(), stream);
  }
}

#define CONVBASIS_INSTANTIATE(E)                                                                  \
  template void exact_attention(View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>, \
                                View<Compute<E>, 3>, const AttentionOptions&,                     \
                                std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
