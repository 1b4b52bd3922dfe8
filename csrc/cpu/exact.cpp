#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "convbasis/attention.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/blas.h"
#include "cpu/exact_head.h"
#include "cpu/row_tiles.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"
#include "cpu/visible.h"

namespace convbasis {

template <class T>
OnlineSoftmax<T>::OnlineSoftmax(index_t channels, const char* function, index_t keys)
    : function_(function),
      channels_(channels),
      key_tile_(keys),
      scores_(kQueryTile * kKeyTile),
      row_max_(kQueryTile),
      row_sum_(kQueryTile) {}

/// Turns one row of scores of keys [first, last) into weights relative to the largest score so far;
/// what was summed before is rescaled when that grows. Keys a row does not see get weight 0.
template <class T>
void OnlineSoftmax<T>::absorb(index_t row, const RowSight& sight, KeyRange keys, T* out) {
  const Kernels<T>& simd = kernels<T>();
  const auto [begin, end] = sight.within(keys.first, keys.last);
  T* scores = scores_.data() + row * kKeyTile;
  T *seen = scores + (begin - keys.first), *after = scores + (end - keys.first);
  std::fill(scores, seen, T(0));
  std::fill(after, scores + (keys.last - keys.first), T(0));
  const index_t count = sight.count_seen({begin, end});
  if (count == 0) {
    std::fill(seen, after, T(0));
    return;
  }
  if (count < end - begin)
    simd.hide(seen, sight.bits, begin - sight.base, -std::numeric_limits<T>::infinity(),
              end - begin);
  const T top = simd.max_value(seen, end - begin);
  if (std::isinf(top))
    throw InvalidArgument("[" + std::string(function_) +
                          "] query has logits with key that overflow; expected finite products in "
                          "the computing type; got infinite ones");
  if (top > row_max_[row]) {
    const T shrink = std::exp(row_max_[row] - top);  // exp(-inf) = 0 at the first tile
    simd.scale(out, shrink, channels_);
    row_sum_[row] *= static_cast<double>(shrink);
    row_max_[row] = top;
  }
  row_sum_[row] += simd.exp_sum(seen, row_max_[row], end - begin);
}

template <class T>
void OnlineSoftmax<T>::attend(ScoreTiles<T>& source, Rows<const T> value, const TileSight& sight,
                              std::span<const index_t> rows, Rows<T> out, double* lse) {
  const Kernels<T>& simd = kernels<T>();
  const index_t count = static_cast<index_t>(rows.size());
  for (index_t r = 0; r < count; ++r) {
    std::fill_n(out.row(r), channels_, T(0));
    row_max_[r] = -std::numeric_limits<T>::infinity();
    row_sum_[r] = 0;
  }
  source.select(rows);
  for (const KeyRange& segment : sight.segments()) {
    index_t last = segment.first;
    while (last < segment.last) {
      const index_t first = last;  // tiles end where those of other segments would
      last = std::min((first / key_tile_ + 1) * key_tile_, segment.last);
      source.fill(first, last, scores_.data(), kKeyTile);
      for (index_t r = 0; r < count; ++r) absorb(r, sight.row(r), {first, last}, out.row(r));
      blas::multiply<T>(count, channels_, last - first, T(1), {scores_.data(), kKeyTile},
                        {value.row(first), value.stride}, T(1), {out.data, out.stride});
    }
  }
  for (index_t r = 0; r < count; ++r) {
    const double sum = row_sum_[r];
    if (sum > 0) simd.scale(out.row(r), static_cast<T>(1 / sum), channels_);
    if (lse != nullptr)
      lse[r] = sum == 0 ? -std::numeric_limits<double>::infinity()
                        : static_cast<double>(row_max_[r]) + std::log(sum);
  }
}

template <class T>
index_t exact_tile_rows(index_t head_dim, index_t channels) {
  return panel_rows<T>(std::max(head_dim, channels));
}

template <class T>
void exact_tile(const View<const T, 2>& query, const KeyArrays<T>& source, double scale,
                const VisibleKeys& visible, std::span<const index_t> rows, const View<T, 2>& out,
                const View<T, 1>& lse) {
  const auto count = static_cast<index_t>(rows.size()), channels = out.shape[1];
  DotScores<T> scores(query, source.panels, query.shape[1], scale);
  OnlineSoftmax<T> softmax(channels, "exact_attention", kPanel);
  Buffer<T> result(count * channels);
  std::array<double, kQueryTile> row_lse;
  TileSight sight;
  visible.look(rows, sight);
  softmax.attend(scores, source.value.rows, sight, rows, {result.data(), channels}, row_lse.data());
  for (index_t r = 0; r < count; ++r) {
    const index_t row = rows[static_cast<std::size_t>(r)];
    write_row(result.data() + r * channels, out, row, source.value.unscale);
    if (lse.data != nullptr) lse(row) = static_cast<T>(row_lse[static_cast<std::size_t>(r)]);
  }
}

namespace {

/// Attention of listed rows to each range of keys: sorted row i and range r at r * count + i.
template <class T>
struct RangeResults {
  RangeResults(const RowTiles& tiles, index_t channel_count)
      : count(tiles.count()),
        channels(channel_count),
        out(tiles.ranges() * count * channels),
        lse(static_cast<std::size_t>(tiles.ranges() * count),
            -std::numeric_limits<double>::infinity()) {}

  /// Puts the ranges of row i together in `row`; returns its lse.
  double merge(index_t i, index_t ranges, T* row) const {
    double peak = -std::numeric_limits<double>::infinity(), sum = 0;
    for (index_t r = 0; r < ranges; ++r) {
      if (std::isnan(lse_of(i, r))) {  // which a maximum may pass over
        std::fill_n(row, channels, std::numeric_limits<T>::quiet_NaN());
        return lse_of(i, r);
      }
      peak = std::max(peak, lse_of(i, r));
    }
    std::fill_n(row, channels, T(0));
    if (std::isinf(peak)) return peak;
    for (index_t r = 0; r < ranges; ++r) sum += std::exp(lse_of(i, r) - peak);
    for (index_t r = 0; r < ranges; ++r) {
      const T weight = static_cast<T>(std::exp(lse_of(i, r) - peak) / sum);
      const T* part = out.data() + (r * count + i) * channels;
      // A range that the row does not see has no numbers.
      for (index_t c = 0; weight > 0 && c < channels; ++c) row[c] += weight * part[c];
    }
    return peak + std::log(sum);
  }
  [[nodiscard]] double lse_of(index_t i, index_t r) const {
    return lse[static_cast<std::size_t>(r * count + i)];
  }

  index_t count, channels;
  Buffer<T> out;
  std::vector<double> lse;
};

}  // namespace

template <class T>
void attend_rows(const View<const T, 2>& query, const KeyValueRows<T>& source,
                 const Panels<T>* packed, double scale, const VisibleKeys& visible, index_t keys,
                 std::span<const index_t> listed, const View<T, 2>& out, const View<T, 1>& lse,
                 const Exec& exec) {
  const index_t channels = out.shape[1];
  const index_t most = packed ? exact_tile_rows<T>(query.shape[1], channels) : kQueryTile;
  const RowTiles tiles(listed, keys, visible.is_causal(), most);
  const index_t count = tiles.count();
  RangeResults<T> results(tiles, channels);
  parallel_for(exec, static_cast<index_t>(tiles.tiles().size()), [&](index_t item, int) {
    const RowTiles::Tile& tile = tiles.tiles()[static_cast<std::size_t>(item)];
    const index_t at = tile.range * count + tile.first_row;
    const index_t head_dim = query.shape[1];
    DotScores<T> scores = packed ? DotScores<T>(query, *packed, head_dim, scale)
                                 : DotScores<T>(query, source.key, head_dim, scale);
    TileSight sight;
    visible.look(tiles.rows(tile), {tile.first_key, tile.last_key}, sight);
    OnlineSoftmax<T>(channels, "exact_attention", packed ? kPanel : kKeyTile)
        .attend(scores, source.value.rows, sight, tiles.rows(tile),
                {results.out.data() + at * channels, channels}, results.lse.data() + at);
  });
  Buffer<T> row(channels);
  for (index_t i = 0; i < count; ++i) {
    const double log_sum = results.merge(i, tiles.ranges(), row.data());
    write_row(row.data(), out, tiles.place(i), source.value.unscale);
    if (lse.data != nullptr) lse(tiles.place(i)) = static_cast<T>(log_sum);
  }
}

template <class T>
void exact_attention(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                     View<T, 4> out, View<T, 3> lse, const AttentionOptions& options,
                     std::span<const index_t> heads, const Exec& exec) {
  constexpr const char* kName = "exact_attention";
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match query");
  const HeadList list(kName, heads, batch * query_heads);
  const VisibleKeys visible(kName, options.mask, options.is_causal, n, key.shape[2]);
  if (batch * query_heads * n == 0) return;

  const std::vector<index_t> rows = positions(visible.query_order(), n);
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const auto [b, h, g] = head_index(list[i], query_heads, key.shape[1]);
    const KeyArrays<T> keys(head_view(key, b, g), head_view(value, b, g), visible.key_order(),
                            inside);
    const index_t most = exact_tile_rows<T>(head_dim, value.shape[3]), tiles = ceil_div(n, most);
    parallel_for(inside, tiles, [&](index_t item, int) {
      const index_t first = (tiles - 1 - item) * most;  // the longest rows first
      const auto tile = std::span(rows).subspan(
          static_cast<std::size_t>(first), static_cast<std::size_t>(std::min(most, n - first)));
      exact_tile<T>(head_view(query, b, h), keys, scale_of(options, head_dim), visible, tile,
                    head_view(out, b, h), row_view(lse, b, h));
    });
  });
}

template <class T>
void attention_rows(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                    View<const index_t, 3> rows, View<T, 4> out, View<T, 3> lse,
                    const AttentionOptions& options, std::span<const index_t> heads,
                    const Exec& exec) {
  constexpr const char* kName = "attention_rows";
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const index_t count = rows.shape[2];
  require_shape(kName, "rows", rows.shape, {batch, query_heads, count}, "to match query");
  require_rows(kName, rows, n);
  require_shape(kName, "out", out.shape, {batch, query_heads, count, value.shape[3]},
                "to match rows and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, count}, "to match rows");
  const HeadList list(kName, heads, batch * query_heads);
  const VisibleKeys visible(kName, options.mask, options.is_causal, n, key.shape[2]);
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const auto [b, h, g] = head_index(list[i], query_heads, key.shape[1]);
    const std::vector<index_t> listed = listed_rows(rows, b, h);
    const KeyValueRows<T> source(head_view(key, b, g), head_view(value, b, g), visible.key_order(),
                                 inside);
    attend_rows<T>(head_view(query, b, h), source, nullptr, scale_of(options, query.shape[3]),
                   visible, key.shape[2], listed, head_view(out, b, h), row_view(lse, b, h),
                   inside);
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template class OnlineSoftmax<T>;                                                                \
  template index_t exact_tile_rows<T>(index_t, index_t);                                          \
  template void exact_tile(const View<const T, 2>&, const KeyArrays<T>&, double,                  \
                           const VisibleKeys&, std::span<const index_t>, const View<T, 2>&,       \
                           const View<T, 1>&);                                                    \
  template void attend_rows(const View<const T, 2>&, const KeyValueRows<T>&, const Panels<T>*,    \
                            double, const VisibleKeys&, index_t, std::span<const index_t>,        \
                            const View<T, 2>&, const View<T, 1>&, const Exec&);                   \
  template void exact_attention(View<const T, 4>, View<const T, 4>, View<const T, 4>, View<T, 4>, \
                                View<T, 3>, const AttentionOptions&, std::span<const index_t>,    \
                                const Exec&);                                                     \
  template void attention_rows(View<const T, 4>, View<const T, 4>, View<const T, 4>,              \
                               View<const index_t, 3>, View<T, 4>, View<T, 3>,                    \
                               const AttentionOptions&, std::span<const index_t>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
