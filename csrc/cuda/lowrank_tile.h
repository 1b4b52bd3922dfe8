#pragma once

#include "cuda/lowrank_tokens.h"
#include "cuda/monomials.h"
#include "cuda/register_tile.h"

namespace convbasis::cuda {

/// Products of a thread block: kRows rows (features of keys, or queries) by Width columns
/// (channels, or keys), kDepth terms at a time. Few columns are given more rows. What is summed
/// over is the left operand (kDepth, kLeft) and the right one (kDepth, kRight) in shared memory; a
/// column after the others is what `totals` are summed with.
template <class T, int Width>
struct LowRankTile {
  static constexpr int kColumnQuads = Width / kQuad;
  static constexpr int kRows = kTileThreads / kColumnQuads * kTileRows;
  static constexpr int kLeast = sizeof(T) == 4 ? 32 : 16;
  static constexpr int kDepth = Width > kLeast ? Width : kLeast;
  static constexpr int kLeft = kRows + kQuad, kRight = Width + kQuad;
  static constexpr std::size_t kSharedBytes = sizeof(T) * kDepth * (kLeft + kRight);
  static_assert(kSharedBytes <= 47 << 10);
  static_assert(LowRankTokens<T>::kTokenMultiple % kRows == 0);

  /// The sums of one thread. totals: those of its rows, of every kColumnQuads-th term.
  struct Sums {
    TileSums<T> tile;
    T totals[kTileRows];
    CONVBASIS_DEVICE void clear() {
      tile.clear();
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) totals[r] = T(0);
    }
  };
  [[nodiscard]] static CONVBASIS_DEVICE int row(int t) { return t / kColumnQuads * kTileRows; }
  [[nodiscard]] static CONVBASIS_DEVICE int column(int t) { return t % kColumnQuads * kQuad; }

  static CONVBASIS_DEVICE void add(int t, int depth, const T* left, const T* right,
                                   TileSums<T>& sums) {
    add_products<kLeft, kRight>(depth, left + row(t), right + column(t), sums);
  }
  static CONVBASIS_DEVICE void add_totals(int t, int depth, const T* left, const T* right,
                                          Sums& sums) {
    for (int k = t % kColumnQuads; k < depth; k += kColumnQuads) {
      const auto* rows = reinterpret_cast<const Quad<T>*>(left + k * kLeft + row(t));
      const T factor = right[k * kRight + Width];
      const Quad<T> low = rows[0], high = rows[1];
      CONVBASIS_UNROLL
      for (int r = 0; r < kQuad; ++r) {
        sums.totals[r] += low.of[r] * factor;
        sums.totals[r + kQuad] += high.of[r] * factor;
      }
    }
  }
  /// to[i] = the total of row i, i < kRows, by all threads; scratch holds kRows * kColumnQuads
  /// numbers. Ends with a phase of its own.
  static CONVBASIS_DEVICE void sum_totals(Block<kTileThreads>& block,
                                          PerThread<Sums, kTileThreads>& sums, T* scratch,
                                          double* to) {
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r)
        scratch[(row(t) + r) * kColumnQuads + t % kColumnQuads] = sums[t].totals[r];
    });
    block.each(kRows, [&](int i) {
      double total = 0;
      for (int q = 0; q < kColumnQuads; ++q)
        total += static_cast<double>(scratch[i * kColumnQuads + q]);
      to[i] = total;
    });
  }
};

/// Calls f with the tile that wastes least for so many channels.
template <class T, class F>
void with_tile(index_t channels, const F& f) {
  if (channels <= 16) return f(LowRankTile<T, 16>());
  if (sizeof(T) == 8 || channels <= 32) return f(LowRankTile<T, 32>());
  return f(LowRankTile<T, sizeof(T) == 8 ? 32 : 64>());
}

}  // namespace convbasis::cuda
