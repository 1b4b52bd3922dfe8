#include "core/buffer.h"
#include "cuda/exact_backward.h"
#include "cuda/online_softmax.h"

// Two passes. The first leaves three numbers a query row; from them the second forms tiles of
// weights f and of slopes dS = f o (dY V^T - delta) again. One kernel serves all gradients: a block
// sums rows of one array, weighted by tiles of f or dS, for kTile rows of the gradient, so that
// every sum has one order.

namespace convbasis::cuda {
namespace {

/// Of one query row: f = exp(logit - top) * inverse, and delta = the sum of f o (dY V^T).
template <class T>
struct RowStatistics {
  T top, inverse, delta;
};

/// weight * difference; what has no weight has no slope, whatever an unseen value holds.
template <class T>
CONVBASIS_DEVICE T slope_of(T weight, T difference) {
  return weight == 0 ? T(0) : weight * difference;
}

/// kTile query rows of one head.
template <class T>
struct FormStatistics {
  using Softmax = OnlineSoftmax<T>;
  static constexpr std::size_t kSharedBytes = sizeof(T) * (kOperands<T> + Softmax::kElements);
  static_assert(kSharedBytes <= kMostShared);

  Softmax softmax;
  Array<T> value, grad_output;
  const std::int32_t* heads;
  const std::int32_t* only;  // flags the heads to compute; null: all of them
  index_t row_tiles;
  RowStatistics<T>* statistics;  // (all heads, rows)

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    T* operands = reinterpret_cast<T*>(block.shared);
    const typename Softmax::Shared shared(operands + kOperands<T>);
    const index_t head = heads[block.index / row_tiles];
    if (only != nullptr && only[head] == 0) return;
    const index_t row = (row_tiles - 1 - block.index % row_tiles) * kTile;  // the longest first
    const index_t end = softmax.end_of(row);

    typename Softmax::Rows rows;
    PerThread<double, kTileThreads> deltas;
    block.each(kTileThreads, [&](int t) {
      Softmax::clear(rows[t]);
      deltas[t] = 0;
    });
    for (index_t first = 0; first < end; first += kTile) {
      softmax.form_weights(block, head, row, first, operands, shared, rows);
      PerThread<TileSums<T>, kTileThreads> dots;
      multiply_rows(block, head, grad_output, row, value, first, operands, dots);
      block.each(kTileThreads, [&](int t) {
        update_weights(t, shared.weights, dots[t],
                       [](T weight, T dot, int, int) { return slope_of(weight, dot); });
      });
      block.each(kTileThreads, [&](int t) {
        T sum = 0;
        for (int k = 0; k < Softmax::kKeys; ++k) sum += shared.mine(t)[k * kTileStride];
        deltas[t] =
            deltas[t] * static_cast<double>(shared.shrink[t % kTile]) + static_cast<double>(sum);
      });
    }

    auto* totals = reinterpret_cast<double*>(operands);
    block.each(kTileThreads, [&](int t) {
      totals[t] = rows[t].sum;
      totals[t + kTileThreads] = deltas[t];
    });
    block.each(kTile, [&](int t) {
      if (row + t >= grad_output.rows) return;
      const double inverse = 1 / (totals[t] + totals[t + kTile]);
      const double delta = totals[t + kTileThreads] + totals[t + kTileThreads + kTile];
      statistics[head * grad_output.rows + row + t] = {rows[t].top, static_cast<T>(inverse),
                                                       static_cast<T>(delta * inverse)};
    });
  }
};

/// One side of the matrix of logits, its rows, and of the matrix of slopes.
enum Product { kLogits, kSlopes };
template <class T>
struct Side {
  Array<T> of[2];  // query and grad_output, or key and value
};

/// kTile rows and Tiles * kTile channels of one gradient: sums of the other side's rows, weighted
/// by dS where the logits depend on this side, by f for the gradient by value.
template <class T, int Tiles>
struct Differentiate {
  using Dots = PerThread<TileSums<T>, kTileThreads>;
  using Sums = PerThread<WideSums<T, Tiles>, kTileThreads>;
  static constexpr int kChannels = Tiles * kTile;
  static constexpr std::size_t kSharedBytes = sizeof(T) * (kOperands<T> + kTile * kTileStride);
  static_assert(kSharedBytes <= kMostShared);
  static constexpr int kLeastBlocks = 1;

  Side<T> mine, other;
  Array<T> summed, out;
  const RowStatistics<T>* statistics;
  const std::int32_t* heads;   // query heads
  const std::int32_t* groups;  // where the heads of a key head begin; null: one by one
  const std::int32_t* only;    // flags the heads to compute, one a group; null: all of them
  index_t row_tiles, channel_tiles;
  T scale;
  bool is_causal, by_value;

  [[nodiscard]] CONVBASIS_DEVICE bool of_keys() const { return groups != nullptr; }

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    T* operands = reinterpret_cast<T*>(block.shared);
    T* weights = operands + kOperands<T>;
    const index_t channel = block.index % channel_tiles * kChannels;
    const index_t item = block.index / channel_tiles, group = item / row_tiles;
    const index_t tile = item % row_tiles;  // those that meet most of the other side first
    const index_t row = (of_keys() ? tile : row_tiles - 1 - tile) * kTile;
    const index_t begin = is_causal && of_keys() ? row : 0;
    const index_t rows = other.of[kLogits].rows;
    const index_t end = is_causal && !of_keys() && row + kTile < rows ? row + kTile : rows;
    const auto single = static_cast<std::int32_t>(group);
    const std::int32_t first_head = of_keys() ? groups[group] : single;
    const std::int32_t last_head = of_keys() ? groups[group + 1] : single + 1;
    if (only != nullptr && only[heads[first_head]] == 0) return;

    Sums sums;
    block.lanes([&](int t) { clear(sums[t]); });
    for (std::int32_t h = first_head; h < last_head; ++h) {
      const index_t head = heads[h];
      for (index_t first = begin; first < end; first += kTile) {
        form_weights(block, head, row, first, operands, weights);
        Sums of_tile;  // one long sum would lose more with each row
        block.lanes([&](int t) { clear(of_tile[t]); });
        add_weighted_rows<Tiles>(block, weights, head, summed, first, end, channel, operands,
                                 of_tile);
        block.lanes([&](int t) { add(of_tile[t], sums[t]); });
      }
    }
    block.each(kTileThreads, [&](int t) {
      store_rows(t, heads[first_head], out, row, channel, sums[t],
                 [&](int) { return by_value ? T(1) : scale; });
    });
  }

  static CONVBASIS_DEVICE void clear(WideSums<T, Tiles>& sums) {
    CONVBASIS_UNROLL
    for (int i = 0; i < Tiles; ++i) sums.tile[i].clear();
  }
  static CONVBASIS_DEVICE void add(const WideSums<T, Tiles>& from, WideSums<T, Tiles>& to) {
    CONVBASIS_UNROLL
    for (int i = 0; i < Tiles; ++i) CONVBASIS_UNROLL
    for (int r = 0; r < kTileRows; ++r) CONVBASIS_UNROLL
    for (int c = 0; c < kQuad; ++c) to.tile[i].of[r][c] += from.tile[i].of[r][c];
  }

  /// weights(j, i) = f, or dS, where row `row` + i of this side meets row `first` + j of the other.
  CONVBASIS_DEVICE void form_weights(Block<kTileThreads>& block, index_t head, index_t row,
                                     index_t first, T* operands, T* weights) const {
    const int rows = in_tile(row, mine.of[kLogits].rows);
    const int others = in_tile(first, other.of[kLogits].rows);
    // By how many rows the first query is behind the first key: tiles before it are not visited.
    const int lead = of_keys() ? in_tile(row, first) : in_tile(first, row);
    const index_t queries = of_keys() ? other.of[kLogits].rows : mine.of[kLogits].rows;
    const RowStatistics<T>* of_rows = statistics + head * queries + (of_keys() ? first : row);
    Dots dots;
    for (int which = kLogits; which <= (by_value ? kLogits : kSlopes); ++which) {
      multiply_rows(block, head, mine.of[which], row, other.of[which], first, operands, dots);
      block.each(kTileThreads, [&](int t) {
        update_weights(t, weights, dots[t], [&](T weight, T dot, int i, int j) {
          const int query = of_keys() ? j : i, key = of_keys() ? i : j;
          if (i >= rows || j >= others || (is_causal && key - query > lead)) return T(0);
          const RowStatistics<T>& of_row = of_rows[query];
          if (which == kSlopes) return slope_of(weight, dot - of_row.delta);
          return exponential(scale * dot - of_row.top) * of_row.inverse;
        });
      });
    }
  }
};

/// What the three gradients share.
template <class T>
struct Call {
  OnlineSoftmax<T> softmax;
  Side<T> queries, keys;
  const RowStatistics<T>* statistics;
  const HeadGroups& groups;
  const std::int32_t* only;
};

enum class By { query, key, value };

template <int Tiles, class T>
void differentiate(const Call<T>& call, By by, const Array<T>& out, const Stream& stream) {
  using Kernel = Differentiate<T, Tiles>;
  const bool of_keys = by != By::query;
  const Side<T>& other = of_keys ? call.queries : call.keys;
  const index_t row_tiles = ceil_div(out.rows, kTile);
  const index_t channel_tiles = ceil_div(out.channels, Kernel::kChannels);
  const index_t items = of_keys ? call.groups.count() : call.groups.heads.size();
  launch_blocks<kTileThreads>(
      stream, items * row_tiles * channel_tiles, Kernel::kSharedBytes,
      Kernel{of_keys ? call.keys : call.queries, other,
             by == By::value ? other.of[kSlopes] : other.of[kLogits], out, call.statistics,
             call.groups.heads.data(), of_keys ? call.groups.begins.data() : nullptr, call.only,
             row_tiles, channel_tiles, call.softmax.scale, call.softmax.is_causal,
             by == By::value});
}

/// Logits are formed once for all channels of a thread block; registers hold 128 floats' worth.
template <class T>
void differentiate(const Call<T>& call, By by, const Array<T>& out, const Stream& stream) {
  if (sizeof(T) == 4 && out.channels > kTile) {
    differentiate<sizeof(T) == 4 ? 2 : 1>(call, by, out, stream);
  } else {
    differentiate<1>(call, by, out, stream);
  }
}

}  // namespace

HeadGroups upload_groups(std::span<const Group> groups, index_t query_heads, const Stream& stream) {
  std::vector<std::int32_t> numbers, begins{0};
  for (const Group& group : groups) {
    for (const index_t head : group.heads)
      numbers.push_back(static_cast<std::int32_t>(group.batch * query_heads + head));
    begins.push_back(static_cast<std::int32_t>(numbers.size()));
  }
  return {upload<std::int32_t>(stream, numbers), upload<std::int32_t>(stream, begins)};
}

template <class T>
void differentiate_exactly(const BackwardArrays<T>& arrays, const HeadGroups& groups,
                           index_t all_heads, double scale, bool is_causal,
                           const std::int32_t* only, const Stream& stream) {
  const index_t rows = arrays.query.rows, row_tiles = ceil_div(rows, kTile);
  const OnlineSoftmax<T> softmax{arrays.query, arrays.key, static_cast<T>(scale), is_causal};
  const DeviceBuffer<RowStatistics<T>> statistics(stream, all_heads * rows);
  const Call<T> call{softmax,
                     {{arrays.query, arrays.grad_output}},
                     {{arrays.key, arrays.value}},
                     statistics.data(),
                     groups,
                     only};
  launch_blocks<kTileThreads>(
      stream, groups.heads.size() * row_tiles, FormStatistics<T>::kSharedBytes,
      FormStatistics<T>{softmax, arrays.value, arrays.grad_output, groups.heads.data(), only,
                        row_tiles, statistics.data()});
  differentiate(call, By::query, arrays.grad_query, stream);
  differentiate(call, By::key, arrays.grad_key, stream);
  differentiate(call, By::value, arrays.grad_value, stream);
}

template <class E>
void exact_attention_backward(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                              View<const E, 4> grad_output, View<E, 4> grad_query,
                              View<E, 4> grad_key, View<E, 4> grad_value,
                              const AttentionOptions& options, std::span<const index_t> heads,
                              const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "exact_attention_backward";
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "grad_output", grad_output.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  const HeadList list(kName, heads, batch * query_heads);
  require_no_mask(kName, options);
  const std::vector<Group> groups = groups_of(list, batch, query_heads, key.shape[1]);
  if (groups.empty()) return;

  const DeviceGuard guard(stream.device);
  const auto of = [&](const auto& view) { return array_of(view, query_heads); };
  const BackwardArrays<T> arrays{of(query),      of(key),      of(value),     of(grad_output),
                                 of(grad_query), of(grad_key), of(grad_value)};
  differentiate_exactly(arrays, upload_groups(groups, query_heads, stream), batch * query_heads,
                        scale_of(options, head_dim), options.is_causal, nullptr, stream);
}

#define CONVBASIS_INSTANTIATE(T)                                                            \
  template void differentiate_exactly(const BackwardArrays<T>&, const HeadGroups&, index_t, \
                                      double, bool, const std::int32_t*, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

#define CONVBASIS_INSTANTIATE(E)                                                          \
  template void exact_attention_backward(                                                 \
      View<const E, 4>, View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>, \
      View<E, 4>, View<E, 4>, const AttentionOptions&, std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
