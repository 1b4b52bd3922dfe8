#include <algorithm>
#include <numeric>

#include "convbasis/recover.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/row_tiles.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace convbasis {
namespace {

/// Largest |exact - strips| over the keys in [begin, end) that a tile of rows sees.
template <class T>
double tile_deviation(DotScores<T>& exact, StripScores<T>& strips, index_t begin, index_t end,
                      std::span<const index_t> rows) {
  Buffer<T> dots(kQueryTile * kKeyTile), sums(kQueryTile * kKeyTile);
  exact.select(rows);
  strips.select(rows);
  index_t reach = 0;
  for (index_t row : rows) reach = std::max(reach, visible_keys(row, end, true));
  T worst = 0;
  for (index_t first = begin; first < reach; first += kKeyTile) {
    const index_t last = std::min(first + kKeyTile, reach);
    exact.fill(first, last, dots.data(), kKeyTile);
    strips.fill(first, last, sums.data(), kKeyTile);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const index_t seen = std::min(last, visible_keys(rows[r], end, true)) - first;
      const index_t at = static_cast<index_t>(r) * kKeyTile;
      if (seen > 0)
        worst =
            std::max(worst, kernels<T>().max_distance(dots.data() + at, sums.data() + at, seen));
    }
  }
  return static_cast<double>(worst);
}

}  // namespace

template <class T>
void logit_deviation(View<const T, 4> query, View<const T, 4> key, double scale,
                     const BasisView<T>& basis, View<const index_t, 3> rows,
                     View<double, 2> deviation, const Exec& exec) {
  constexpr const char* kName = "residual";
  require_basis(kName, basis);
  const auto [batch, heads, n, head_dim] = query.shape;
  require(head_dim > 0, kName, "query has head_dim 0; expected at least 1");
  require_groups(kName, heads, key.shape[1]);
  require_shape(kName, "key", key.shape, {batch, key.shape[1], key.shape[2], head_dim},
                "to match query");
  require_shape(kName, "basis.kernels", basis.kernels.shape,
                {batch, heads, basis.kernels.shape[2], n}, "to match query");
  require_shape(kName, "deviation", deviation.shape, {batch, heads}, "to match query");
  if (rows.data != nullptr) {
    require_shape(kName, "rows", rows.shape, {batch, heads, rows.shape[2]}, "to match query");
    require_rows(kName, rows, n);
  }
  const index_t keys = std::min(basis.num_columns, key.shape[2]);

  for_each_head(exec, batch * heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, heads, key.shape[1]);
    std::vector<index_t> listed(static_cast<std::size_t>(n));
    std::iota(listed.begin(), listed.end(), index_t{0});
    if (rows.data != nullptr) listed = listed_rows(rows, b, h);
    const StripMatrix<T> matrix = head_strips(basis, b, h);
    Buffer<T> key_copy;
    const Rows<const T> key_rows = as_rows(head_view(key, b, g), key_copy);
    const RowTiles tiles(listed, keys, true, kQueryTile);
    std::vector<double> worst(tiles.tiles().size(), 0.0);
    parallel_for(inside, static_cast<index_t>(worst.size()), [&](index_t item, int) {
      const auto i = static_cast<std::size_t>(item);
      const RowTiles::Tile& tile = tiles.tiles()[i];
      DotScores<T> exact(head_view(query, b, h), key_rows, head_dim, scale);
      StripScores<T> strips(matrix, nullptr);
      worst[i] = tile_deviation(exact, strips, tile.first_key, tile.last_key, tiles.rows(tile));
    });
    deviation(b, h) = worst.empty() ? 0.0 : *std::max_element(worst.begin(), worst.end());
  });
}

template void logit_deviation(View<const float, 4>, View<const float, 4>, double,
                              const BasisView<float>&, View<const index_t, 3>, View<double, 2>,
                              const Exec&);
template void logit_deviation(View<const double, 4>, View<const double, 4>, double,
                              const BasisView<double>&, View<const index_t, 3>, View<double, 2>,
                              const Exec&);

}  // namespace convbasis
