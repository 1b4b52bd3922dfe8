#include <algorithm>
#include <bit>

#include "core/buffer.h"
#include "cuda/attention_gradient.h"
#include "cuda/far_gradient.h"
#include "cuda/numeric.h"
#include "cuda/tile_gradient.h"

namespace convbasis::cuda {
namespace {

constexpr index_t kLeastNear = 256, kMostNear = 8192;

/// Entries of f in blocks of `near` rows and columns on the diagonal, of rows that are not spoiled,
/// with the row's sum in left and in delta.
template <class T>
struct NearEntries {
  StripTable<T> strips;
  const double* delta_shares;
  index_t near;

  [[nodiscard]] CONVBASIS_DEVICE index_t rows(int) const { return strips.rows; }
  [[nodiscard]] CONVBASIS_DEVICE index_t first_column(int, index_t row) const {
    return row / near * near;
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t end_column(int head, index_t row) const {
    if (!strips.is_listed(head)) return 0;
    return row + kTile < strips.columns ? row + kTile : strips.columns;
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t first_row(int, index_t column) const { return column; }
  [[nodiscard]] CONVBASIS_DEVICE index_t end_row(int head, index_t column) const {
    if (!strips.is_listed(head)) return 0;
    const index_t end = (column / near + 1) * near;
    return end < strips.rows ? end : strips.rows;
  }
  [[nodiscard]] CONVBASIS_DEVICE T weight(int head, index_t row, int strip, index_t column) const {
    return strip >= 0 && column <= row ? strips.kernel(head, strip)[row - column] : T(0);
  }
  [[nodiscard]] CONVBASIS_DEVICE T delta(int head, index_t row) const {
    return static_cast<T>(delta_shares[head * strips.rows + row]);
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t target(int, index_t row) const { return row; }
};

/// All entries of listed rows, one after another.
template <class T>
struct SpoiledEntries {
  StripTable<T> strips;
  SpoiledGradient<T> spoiled;

  [[nodiscard]] CONVBASIS_DEVICE index_t rows(int head) const { return spoiled.counts[head]; }
  [[nodiscard]] CONVBASIS_DEVICE index_t first_column(int, index_t) const { return 0; }
  [[nodiscard]] CONVBASIS_DEVICE index_t end_column(int head, index_t place) const {
    const index_t last = place + kTile < rows(head) ? place + kTile - 1 : rows(head) - 1;
    const index_t row = target(head, last);
    return row + 1 < strips.columns ? row + 1 : strips.columns;
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t first_row(int head, index_t column) const {
    return spoiled.place_of(head, column);
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t end_row(int head, index_t) const { return rows(head); }
  [[nodiscard]] CONVBASIS_DEVICE T weight(int head, index_t place, int strip,
                                          index_t column) const {
    return spoiled.weight(head, strip, target(head, place), column);
  }
  [[nodiscard]] CONVBASIS_DEVICE T delta(int head, index_t place) const {
    return spoiled.delta_of(head, target(head, place));
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t target(int head, index_t place) const {
    return spoiled.rows[head * strips.rows + place];
  }
};

/// Listed rows of x one after another, as flat heads have them, in units of gradients or of
/// nothing.
template <class T>
struct PackListed {
  SpoiledGradient<T> spoiled;
  Array<T> x;
  const HeadUnits* units;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t head, index_t item) const {
    const auto [place, c] = position_of(item, x.channels);
    if (place >= spoiled.counts[head]) return;
    const T number = x.load(head, spoiled.rows[head * x.rows + place], c);
    to[head * x.rows * x.channels + item] =
        units != nullptr ? number * static_cast<T>(units[head].grad) : number;
  }
};

}  // namespace

Schedule far_schedule(std::span<const StripLayout> heads, index_t head_dim, index_t value_dim,
                      index_t element_size, const GpuModel& model) {
  if (heads.empty()) return {};
  const index_t rows = heads.front().rows;
  const auto whole = static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
  const auto listed = std::count_if(heads.begin(), heads.end(),
                                    [](const StripLayout& layout) { return layout.columns > 0; });
  const auto all = static_cast<double>(listed), size = static_cast<double>(element_size);
  const double width = static_cast<double>((value_dim + 1) * head_dim);
  const auto tiles = [&](index_t near) {
    const double entries = all * static_cast<double>(rows) * static_cast<double>(near) / 2;
    return entries * 4 * static_cast<double>(value_dim + head_dim) / model.flops;
  };
  Schedule best{{}, std::max(whole, kLeastNear)};
  double least = tiles(std::min(best.diagonal, rows));
  for (index_t near = kLeastNear; near <= kMostNear && 2 * near <= whole; near *= 2) {
    const Level level{near, whole};
    const double cost = tiles(near) + 2 * level_cost(heads, width, size, level, model);
    if (cost >= least) continue;
    least = cost;
    best = {{level}, near};
  }
  return best;
}

template <class T>
void differentiate_entries(const Strips<T>& weights, const Array<T>& shares,
                           const double* delta_shares, const SpoiledGradient<T>& spoiled,
                           const Schedule& far, const Array<T>& query, const Array<T>& key,
                           const Array<T>& grad_query, const Array<T>& grad_key,
                           const Stream& stream) {
  const auto all = static_cast<index_t>(weights.layouts.size());
  const index_t rows = query.rows, channels = spoiled.value.channels;
  fill_zero(stream, grad_key.data,
            static_cast<std::size_t>(all * grad_key.rows * grad_key.channels) * sizeof(T));
  add_tile_gradients(NearEntries<T>{weights.table, delta_shares, far.diagonal}, rows, shares,
                     spoiled.value, query, key, grad_query, grad_key, stream);

  const TermFactors<T> of_rows{shares, delta_shares}, of_columns{spoiled.value, nullptr};
  const index_t workspace = GpuModel().workspace;
  for (const Level& level : far.levels) {
    add_far_terms(weights, level, false, of_rows, of_columns, key, grad_query, workspace, stream);
    add_far_terms(weights, level, true, of_columns, of_rows, query, grad_key, workspace, stream);
  }

  const DeviceBuffer<T> grads(stream, all * rows * channels);
  const DeviceBuffer<T> queries(stream, all * rows * query.channels);
  launch(stream, all, rows * channels,
         PackListed<T>{spoiled, spoiled.grad_output, spoiled.units, grads.data()});
  launch(stream, all, rows * query.channels,
         PackListed<T>{spoiled, query, nullptr, queries.data()});
  add_tile_gradients(SpoiledEntries<T>{spoiled.logits, spoiled}, rows,
                     packed_array(grads.data(), all, rows, channels), spoiled.value,
                     packed_array(queries.data(), all, rows, query.channels), key, grad_query,
                     grad_key, stream);
}

#define CONVBASIS_INSTANTIATE(T)                                                                   \
  template void differentiate_entries(const Strips<T>&, const Array<T>&, const double*,            \
                                      const SpoiledGradient<T>&, const Schedule&, const Array<T>&, \
                                      const Array<T>&, const Array<T>&, const Array<T>&,           \
                                      const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
