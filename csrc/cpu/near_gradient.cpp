#include "cpu/near_gradient.h"

#include <algorithm>
#include <vector>

#include "core/buffer.h"
#include "core/thread_pool.h"
#include "cpu/blas.h"
#include "cpu/panels.h"

namespace convbasis {
namespace {

/// Rows and columns of a block. Blocks are what threads share out.
constexpr index_t kBlock = 256;

/// What one worker multiplies in.
template <class T>
struct Tile {
  explicit Tile(index_t rows) : weights(rows * kPanel), grads(rows * kPanel) {}
  Buffer<T> weights, grads;
};

/// Blocks of columns that meet each block of rows.
template <class T>
std::vector<typename AttentionOperator<T>::Columns> near_blocks(const AttentionOperator<T>& f) {
  std::vector<typename AttentionOperator<T>::Columns> blocks;
  for (index_t row = 0; row < f.rows(); row += kBlock) {
    const index_t begin = f.near_columns(row).begin;
    const index_t end = f.near_columns(std::min(row + kBlock, f.rows()) - 1).end;
    blocks.push_back({begin / kBlock, std::max(ceil_div(end, kBlock), begin / kBlock)});
  }
  return blocks;
}

}  // namespace

template <class T>
void add_near_gradient(const AttentionOperator<T>& f, const LogitGradient<T>& grad,
                       Rows<const T> query, Rows<const T> key, index_t channels, Rows<T> grad_query,
                       Rows<T> grad_key, const Exec& exec) {
  const auto blocks = near_blocks(f);
  const auto is_empty = [](const auto& range) { return range.begin == range.end; };
  if (std::all_of(blocks.begin(), blocks.end(), is_empty)) return;
  const index_t count = static_cast<index_t>(blocks.size());
  const index_t tile_rows = panel_rows<T>(std::max(grad.rank, channels));
  const Panels<T> right(grad.right, f.columns(), grad.rank, exec);
  std::vector<Tile<T>> tiles;
  for (int worker = 0; worker < resolve_threads(exec); ++worker) tiles.emplace_back(tile_rows);

  const auto add_tile = [&](index_t row, index_t last_row, index_t first, index_t last,
                            Tile<T>& tile) {
    const index_t height = std::min(tile_rows, last_row - row), width = last - first;
    right.multiply({grad.left.row(row), grad.left.stride}, height, first, last, tile.grads.data(),
                   kPanel);
    for (index_t r = 0; r < height; ++r) {
      T *weights = tile.weights.data() + r * kPanel, *grads = tile.grads.data() + r * kPanel;
      f.near_entries(row + r, first, last, weights);
      for (index_t j = 0; j < width; ++j) grads[j] *= weights[j];
    }
    blas::multiply<T>(height, channels, width, T(1), {tile.grads.data(), kPanel},
                      {key.row(first), key.stride}, T(1), {grad_query.row(row), grad_query.stride});
    blas::add_transposed_product<T>(width, channels, height, {tile.grads.data(), kPanel},
                                    {query.row(row), query.stride},
                                    {grad_key.row(first), grad_key.stride});
  };

  // Blocks with the same difference of their numbers share neither rows nor columns, so threads may
  // take them side by side, and sums grow in an order that does not depend on the threads.
  for (index_t offset = 1 - count; offset < ceil_div(f.columns(), kBlock); ++offset) {
    std::vector<index_t> step;
    for (index_t a = 0; a < count; ++a) {
      const auto [begin, end] = blocks[static_cast<std::size_t>(a)];
      if (a + offset >= begin && a + offset < end) step.push_back(a);
    }
    parallel_for(exec, static_cast<index_t>(step.size()), [&](index_t item, int worker) {
      const index_t a = step[static_cast<std::size_t>(item)], b = a + offset;
      const index_t last_row = std::min((a + 1) * kBlock, f.rows());
      const index_t last_column = std::min((b + 1) * kBlock, f.columns());
      for (index_t row = a * kBlock; row < last_row; row += tile_rows) {
        const index_t end = f.near_columns(std::min(row + tile_rows, last_row) - 1).end;
        const index_t reach = std::min(last_column, end);
        for (index_t first = b * kBlock; first < reach; first += kPanel)
          add_tile(row, last_row, first, std::min(first + kPanel, reach),
                   tiles[static_cast<std::size_t>(worker)]);
      }
    });
  }
}

template void add_near_gradient(const AttentionOperator<float>&, const LogitGradient<float>&,
                                Rows<const float>, Rows<const float>, index_t, Rows<float>,
                                Rows<float>, const Exec&);
template void add_near_gradient(const AttentionOperator<double>&, const LogitGradient<double>&,
                                Rows<const double>, Rows<const double>, index_t, Rows<double>,
                                Rows<double>, const Exec&);

}  // namespace convbasis
