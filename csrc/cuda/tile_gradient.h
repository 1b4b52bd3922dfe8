#pragma once

#include "cuda/row_tiles.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

// The gradient by logits, dS(i, j) = weight(i, j) (left_i . right_j - delta_i), tile by tile, where
// it is never formed but in shared memory. Which entries there are is what Entries say:
//
//   rows(head)                       rows of left
//   first_column(head, row), end_column(head, row)    columns that kTile rows from `row` on meet
//   first_row(head, column), end_row(head, column)    rows that kTile columns meet
//   strips                           a StripTable, for the strip of each column
//   weight(head, row, strip, column) 0 where there is no entry
//   delta(head, row)
//   target(head, row)                the row of grad_query

/// Elements of shared memory behind the operands: weights, and a number and a strip of each row.
template <class T>
inline constexpr std::size_t kGradientBytes =
    sizeof(T) * (kOperands<T> + kTile * kTileStride + kTile) + sizeof(std::int32_t) * kTile;

/// What both kernels have in shared memory.
template <class T>
struct GradientTile {
  CONVBASIS_DEVICE explicit GradientTile(unsigned char* memory)
      : operands(reinterpret_cast<T*>(memory)),
        weights(operands + kOperands<T>),
        delta(weights + kTile * kTileStride),
        strips(reinterpret_cast<std::int32_t*>(delta + kTile)) {}
  T* operands;
  T* weights;            // (kTile, kTileStride)
  T* delta;              // of rows
  std::int32_t* strips;  // of columns

  /// Past the last row anything may stand in dot.
  [[nodiscard]] static CONVBASIS_DEVICE T gradient(T weight, T dot, T delta) {
    return weight != T(0) ? weight * (dot - delta) : T(0);
  }
};

/// A thread block has kTile rows and Tiles * kTile channels of grad_query, to which dS key goes.
template <class T, int Tiles, class Entries>
struct QueryTiles {
  static constexpr std::size_t kSharedBytes = kGradientBytes<T>;
  Entries entries;
  Array<T> left, right, key, grad_query;
  index_t row_tiles, channel_tiles;

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    const GradientTile<T> shared(block.shared);
    const index_t channel = block.index % channel_tiles * (Tiles * kTile);
    const index_t rest = block.index / channel_tiles;
    const int head = static_cast<int>(rest / row_tiles);
    const index_t row = (row_tiles - 1 - rest % row_tiles) * kTile;  // the longest rows first
    const index_t rows = entries.rows(head);
    if (row >= rows) return;
    PerThread<WideSums<T, Tiles>, kTileThreads> sums;
    PerThread<TileSums<T>, kTileThreads> dots;
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int i = 0; i < Tiles; ++i) sums[t].tile[i].clear();
      if (t < kTile) shared.delta[t] = row + t < rows ? entries.delta(head, row + t) : T(0);
    });
    const index_t end = entries.end_column(head, row);
    for (index_t column = entries.first_column(head, row); column < end; column += kTile) {
      multiply_rows(block, head, left, row, right, column, shared.operands, dots);
      block.each(kTile,
                 [&](int j) { shared.strips[j] = entries.strips.strip_of(head, column + j); });
      block.each(kTile * kTile, [&](int i) {
        const int r = i % kTile, j = i / kTile;
        shared.weights[j * kTileStride + r] =
            row + r < rows ? entries.weight(head, row + r, shared.strips[j], column + j) : T(0);
      });
      block.each(kTileThreads, [&](int t) {
        update_weights(t, shared.weights, dots[t], [&](T weight, T dot, int r, int) {
          return GradientTile<T>::gradient(weight, dot, shared.delta[r]);
        });
      });
      add_weighted_rows(block, shared.weights, head, key, column, end, channel, shared.operands,
                        sums);
    }
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const index_t at = row + tile_row(t) + r;
        if (at >= rows) continue;
        const index_t to = entries.target(head, at);
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i) {
          CONVBASIS_UNROLL
          for (int k = 0; k < kQuad; ++k) {
            const index_t c = channel + i * kTile + tile_column(t) + k;
            if (c < grad_query.channels) grad_query.store(head, to, c, sums[t].tile[i].of[r][k]);
          }
        }
      }
    });
  }
};

/// A thread block has kTile columns and Tiles * kTile channels of grad_key, to which dS^T query is
/// added.
template <class T, int Tiles, class Entries>
struct KeyTiles {
  static constexpr std::size_t kSharedBytes = kGradientBytes<T>;
  Entries entries;
  Array<T> left, right, query, grad_key;
  index_t column_tiles, channel_tiles;

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    const GradientTile<T> shared(block.shared);
    const index_t channel = block.index % channel_tiles * (Tiles * kTile);
    const index_t rest = block.index / channel_tiles, column = rest % column_tiles * kTile;
    const int head = static_cast<int>(rest / column_tiles);
    const index_t end = entries.end_row(head, column);
    PerThread<WideSums<T, Tiles>, kTileThreads> sums;
    PerThread<TileSums<T>, kTileThreads> dots;
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int i = 0; i < Tiles; ++i) sums[t].tile[i].clear();
      if (t < kTile) shared.strips[t] = entries.strips.strip_of(head, column + t);
    });
    for (index_t row = entries.first_row(head, column); row < end; row += kTile) {
      multiply_rows(block, head, right, column, left, row, shared.operands, dots);
      block.each(kTile, [&](int r) {
        shared.delta[r] = row + r < end ? entries.delta(head, row + r) : T(0);
      });
      block.each(kTile * kTile, [&](int i) {
        const int j = i % kTile, r = i / kTile;
        shared.weights[r * kTileStride + j] =
            row + r < end ? entries.weight(head, row + r, shared.strips[j], column + j) : T(0);
      });
      block.each(kTileThreads, [&](int t) {
        update_weights(t, shared.weights, dots[t], [&](T weight, T dot, int, int r) {
          return GradientTile<T>::gradient(weight, dot, shared.delta[r]);
        });
      });
      add_weighted_rows(block, shared.weights, head, query, row, end, channel, shared.operands,
                        sums);
    }
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        CONVBASIS_UNROLL
        for (int i = 0; i < Tiles; ++i) {
          CONVBASIS_UNROLL
          for (int k = 0; k < kQuad; ++k) {
            const index_t j = column + tile_row(t) + r;
            const index_t c = channel + i * kTile + tile_column(t) + k;
            if (j < grad_key.rows && c < grad_key.channels)
              grad_key.store(head, j, c, grad_key.load(head, j, c) + sums[t].tile[i].of[r][k]);
          }
        }
      }
    });
  }
};

/// Both, for `rows` rows at most: 2 (2 dv + 2 d) FLOP an entry, of tiles that shared memory feeds.
template <class T, class Entries>
void add_tile_gradients(const Entries& entries, index_t rows, const Array<T>& left,
                        const Array<T>& right, const Array<T>& query, const Array<T>& key,
                        const Array<T>& grad_query, const Array<T>& grad_key,
                        const Stream& stream) {
  const auto run = [&]<int Tiles>(std::integral_constant<int, Tiles>) {
    constexpr index_t kChannels = Tiles * kTile;
    const index_t row_tiles = (rows + kTile - 1) / kTile;
    const index_t column_tiles = (grad_key.rows + kTile - 1) / kTile;
    const index_t channel_tiles = (query.channels + kChannels - 1) / kChannels;
    using OfQuery = QueryTiles<T, Tiles, Entries>;
    launch_blocks<kTileThreads>(
        stream, grad_query.heads * row_tiles * channel_tiles, OfQuery::kSharedBytes,
        OfQuery{entries, left, right, key, grad_query, row_tiles, channel_tiles});
    using OfKey = KeyTiles<T, Tiles, Entries>;
    launch_blocks<kTileThreads>(
        stream, grad_key.heads * column_tiles * channel_tiles, OfKey::kSharedBytes,
        OfKey{entries, left, right, query, grad_key, column_tiles, channel_tiles});
  };
  // Two tiles of doubles would not fit into registers.
  if constexpr (sizeof(T) == 4) {
    if (query.channels > kTile) return run(std::integral_constant<int, 2>());
  }
  run(std::integral_constant<int, 1>());
}

}  // namespace convbasis::cuda
