#include "core/buffer.h"
#include "cuda/buffer.h"
#include "cuda/exact_half.h"
#include "cuda/online_softmax.h"

namespace convbasis::cuda {
namespace {

/// kTile query rows of one head and Tiles * kTile channels of their output. Keys come kTile at a
/// time.
template <class T, int Tiles>
struct Attend {
  using Softmax = OnlineSoftmax<T>;
  using Sums = PerThread<WideSums<T, Tiles>, kTileThreads>;
  static constexpr int kChannels = Tiles * kTile;
  static constexpr std::size_t kSharedBytes = sizeof(T) * (kOperands<T> + Softmax::kElements);
  static_assert(kSharedBytes <= kMostShared);
  static constexpr int kLeastBlocks = sizeof(T) == 8 ? 1 : 0;  // see launch.h

  Softmax softmax;
  Array<T> value, out, lse;
  const std::int32_t* heads;  // null: all
  index_t row_tiles, channel_tiles;

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    T* operands = reinterpret_cast<T*>(block.shared);
    const typename Softmax::Shared shared(operands + kOperands<T>);
    const index_t channel = block.index % channel_tiles * kChannels;
    const index_t item = block.index / channel_tiles;
    const index_t head = heads == nullptr ? item / row_tiles : heads[item / row_tiles];
    const index_t row = (row_tiles - 1 - item % row_tiles) * kTile;  // the longest rows first
    const index_t end = softmax.end_of(row);

    typename Softmax::Rows rows;
    Sums sums;
    block.each(kTileThreads, [&](int t) {
      Softmax::clear(rows[t]);
      CONVBASIS_UNROLL
      for (int i = 0; i < Tiles; ++i) sums[t].tile[i].clear();
    });
    for (index_t first = 0; first < end; first += kTile) {
      softmax.form_weights(block, head, row, first, operands, shared, rows);
      Sums of_tile;  // one long sum would lose more with each key
      block.lanes([&](int t) {
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i) of_tile[t].tile[i].clear();
      });
      add_weighted_rows<Tiles>(block, shared.weights, head, value, first, end, channel, operands,
                               of_tile);
      add(block, shared.shrink, of_tile, sums);
    }
    finish(block, head, row, channel, operands, rows, sums);
  }

  /// sums = factors * sums + of_tile.
  static CONVBASIS_DEVICE void add(Block<kTileThreads>& block, const T* factors, Sums& of_tile,
                                   Sums& sums) {
    block.lanes([&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const T factor = factors[tile_row(t) + r];
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i) CONVBASIS_UNROLL
        for (int c = 0; c < kQuad; ++c) {
          T& sum = sums[t].tile[i].of[r][c];
          sum = factor * sum + of_tile[t].tile[i].of[r][c];
        }
      }
    });
  }

  CONVBASIS_DEVICE void finish(Block<kTileThreads>& block, index_t head, index_t row,
                               index_t channel, T* operands, typename Softmax::Rows& rows,
                               Sums& sums) const {
    auto* totals = reinterpret_cast<double*>(operands);
    const bool sees_keys = softmax.key.rows > 0;
    block.each(kTileThreads, [&](int t) { totals[t] = rows[t].sum; });
    block.each(kTileThreads, [&](int t) {
      store_rows(t, head, out, row, channel, sums[t], [&](int at) {
        return sees_keys ? static_cast<T>(1 / (totals[at] + totals[at + kTile])) : T(0);
      });
      if (t >= kTile || row + t >= out.rows || channel > 0 || lse.data == nullptr) return;
      const double log_sum = static_cast<double>(rows[t].top) + log(totals[t] + totals[t + kTile]);
      lse.store(head, row + t, 0, sees_keys ? static_cast<T>(log_sum) : rows[t].top);
    });
  }
};

template <int Tiles, class T>
void attend(const OnlineSoftmax<T>& softmax, const Array<T>& value, const Array<T>& out,
            const Array<T>& lse, index_t heads, const std::int32_t* listed, const Stream& stream) {
  using Kernel = Attend<T, Tiles>;
  const index_t row_tiles = ceil_div(out.rows, kTile);
  const index_t channel_tiles =
      std::max(ceil_div(out.channels, Kernel::kChannels), index_t{1});  // lse without channels
  launch_blocks<kTileThreads>(stream, heads * row_tiles * channel_tiles, Kernel::kSharedBytes,
                              Kernel{softmax, value, out, lse, listed, row_tiles, channel_tiles});
}

}  // namespace

template <class E>
void exact_attention(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                     View<E, 4> out, View<Compute<E>, 3> lse, const AttentionOptions& options,
                     std::span<const index_t> heads, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "exact_attention";
  require_attention(kName, query, key, value);
  const index_t batch = query.shape[0], query_heads = query.shape[1], n = query.shape[2];
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match query");
  const HeadList list(kName, heads, batch * query_heads);
  const OnlineSoftmax<T> softmax = softmax_of<E>(kName, query, key, options);
  if (batch * query_heads * n == 0) return;

  const DeviceGuard guard(stream.device);
  const std::vector<std::int32_t> numbers(heads.begin(), heads.end());
  const DeviceBuffer<std::int32_t> listed = upload<std::int32_t>(stream, numbers);
  const auto of = [&](const auto& view) { return array_of(view, query_heads); };
  const Array<T> sums = column_of(lse, query_heads);
  // Logits are formed once for all channels of a thread block; registers hold 128 floats' worth.
  if constexpr (element_of<E> != Element::same) {
    attend_half(softmax, of(value), of(out), sums, list.size(), listed.data(), stream);
  } else if (sizeof(T) == 4 && value.shape[3] > kTile) {
    attend<sizeof(T) == 4 ? 2 : 1>(softmax, of(value), of(out), sums, list.size(), listed.data(),
                                   stream);
  } else {
    attend<1>(softmax, of(value), of(out), sums, list.size(), listed.data(), stream);
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
