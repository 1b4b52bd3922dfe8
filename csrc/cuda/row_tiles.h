#pragma once

#include "cuda/element.h"
#include "cuda/register_tile.h"

namespace convbasis::cuda {

// Products with rows of callers' arrays, kTile by kTile, in a block of kTileThreads.

/// Channels, or rows, that are in shared memory at a time, so that 48 KiB hold the operands and a
/// tile of weights.
template <class T>
inline constexpr int kDepth = sizeof(T) == 4 ? 32 : 8;
constexpr int kTileStride = kTile + kQuad;  // neighbouring rows begin in other banks
template <class T>
inline constexpr int kOperands = 2 * kDepth<T> * kTileStride;  // elements

/// kTile by Tiles * kTile sums.
template <class T, int Tiles>
struct WideSums {
  TileSums<T> tile[Tiles];
};

/// How many of kTile rows, or channels, from `first` on lie before `end`.
[[nodiscard]] CONVBASIS_DEVICE int in_tile(index_t first, index_t end) {
  return static_cast<int>(end - first < kTile ? end - first : kTile);
}

/// dots(r, c) = the product of row `row` + r of left and row `column` + c of right; rows past an
/// end are 0.
template <class T>
CONVBASIS_DEVICE void multiply_rows(Block<kTileThreads>& block, index_t head, const Array<T>& left,
                                    index_t row, const Array<T>& right, index_t column, T* operands,
                                    PerThread<TileSums<T>, kTileThreads>& dots) {
  constexpr int kChannels = kDepth<T>;
  T* lefts = operands;
  T* rights = operands + kChannels * kTileStride;
  const int left_rows = in_tile(row, left.rows), right_rows = in_tile(column, right.rows);
  block.each(kTileThreads, [&](int t) { dots[t].clear(); });
  for (index_t first = 0; first < left.channels; first += kChannels) {
    const int channels = in_tile(first, left.channels);
    // A warp reads 8 neighbouring channels of 4 rows, and writes to as many banks as it has
    // threads.
    block.each(kChannels * kTile, [&](int i) {
      const int depth = i % 8 + i / 32 % (kChannels / 8) * 8;
      const int at = i / 8 % 4 + i / (4 * kChannels) * 4;
      const bool inside = depth < channels;
      lefts[depth * kTileStride + at] =
          inside && at < left_rows ? left.load(head, row + at, first + depth) : T(0);
      rights[depth * kTileStride + at] =
          inside && at < right_rows ? right.load(head, column + at, first + depth) : T(0);
    });
    block.each(kTileThreads, [&](int t) {
      add_products<kTileStride, kTileStride>(t, kChannels, lefts, rights, dots[t]);
    });
  }
}

/// weights(c, r) = f(weights(c, r), dots(r, c), r, c): thread t's part.
template <class T, class F>
CONVBASIS_DEVICE void update_weights(int t, T* weights, const TileSums<T>& dots, const F& f) {
  CONVBASIS_UNROLL
  for (int k = 0; k < kQuad; ++k) {
    const int r = tile_row(t), c = tile_column(t) + k;
    auto* quads = reinterpret_cast<Quad<T>*>(weights + c * kTileStride + r);
    CONVBASIS_UNROLL
    for (int q = 0; q < kTileRows / kQuad; ++q) {
      Quad<T> quad = quads[q];
      CONVBASIS_UNROLL
      for (int i = 0; i < kQuad; ++i)
        quad.of[i] = f(quad.of[i], dots.of[q * kQuad + i][k], r + q * kQuad + i, c);
      quads[q] = quad;
    }
  }
}

/// sums(r, c) += weights(k, r) * channel `channel` + c of row `first` + k, for kTile rows before
/// `end`. Rows of weights are kTileStride apart.
template <int Tiles, class T>
CONVBASIS_DEVICE void add_weighted_rows(Block<kTileThreads>& block, const T* weights, index_t head,
                                        const Array<T>& array, index_t first, index_t end,
                                        index_t channel, T* operands,
                                        PerThread<WideSums<T, Tiles>, kTileThreads>& sums) {
  constexpr int kRows = kDepth<T>, kChannels = Tiles * kTile;
  static_assert(kRows * kChannels <= kOperands<T>);
  for (int k = 0; k < kTile && first + k < end; k += kRows) {
    block.each(kRows * kChannels, [&](int i) {
      const index_t row = first + k + i / kChannels, c = channel + i % kChannels;
      operands[i] = row < end && c < array.channels ? array.load(head, row, c) : T(0);
    });
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int i = 0; i < Tiles; ++i)
        add_products<kTileStride, kChannels>(t, kRows, weights + k * kTileStride,
                                             operands + i * kTile, sums[t].tile[i]);
    });
  }
}

/// Stores factors(r) * sums(r, c) to rows from `row` and channels from `channel` on.
template <int Tiles, class T, class Factor>
CONVBASIS_DEVICE void store_rows(int t, index_t head, const Array<T>& out, index_t row,
                                 index_t channel, const WideSums<T, Tiles>& sums,
                                 const Factor& factor_of) {
  CONVBASIS_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    const int at = tile_row(t) + r;
    const T factor = factor_of(at);
    CONVBASIS_UNROLL
    for (int i = 0; i < Tiles; ++i) {
      CONVBASIS_UNROLL
      for (int k = 0; k < kQuad; ++k) {
        const index_t c = channel + i * kTile + tile_column(t) + k;
        if (row + at < out.rows && c < out.channels)
          out.store(head, row + at, c, factor * sums.tile[i].of[r][k]);
      }
    }
  }
}

}  // namespace convbasis::cuda
