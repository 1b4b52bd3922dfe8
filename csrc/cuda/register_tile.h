#pragma once

#include "cuda/launch.h"

namespace convbasis::cuda {

// Products of tiles in shared memory with sums in registers: 128 threads have kTile by kTile sums,
// a thread kTileRows by kQuad of them.
constexpr int kTile = 64, kTileRows = 8, kQuad = 4, kTileThreads = 128;
constexpr int kQuads = kTile / kQuad;

template <class T>
struct alignas(16) Quad {
  T of[kQuad];
};

template <class T>
struct TileSums {
  T of[kTileRows][kQuad];
  CONVBASIS_DEVICE void clear() {
    CONVBASIS_UNROLL
    for (int r = 0; r < kTileRows; ++r) CONVBASIS_UNROLL
    for (int c = 0; c < kQuad; ++c) of[r][c] = T(0);
  }
};

/// Where thread t's sums begin.
[[nodiscard]] CONVBASIS_DEVICE int tile_row(int t) { return t / kQuads * kTileRows; }
[[nodiscard]] CONVBASIS_DEVICE int tile_column(int t) { return t % kQuads * kQuad; }

/// sums(r, c) += left(k, r) * right(k, c) over k < depth, from where a thread's rows and columns
/// begin. Rows of left and right are a multiple of kQuad apart.
template <int LeftStride, int RightStride, class T>
CONVBASIS_DEVICE void add_products(int depth, const T* left, const T* right, TileSums<T>& sums) {
  static_assert(LeftStride % kQuad == 0 && RightStride % kQuad == 0);
  const auto* rows = reinterpret_cast<const Quad<T>*>(left);
  const auto* columns = reinterpret_cast<const Quad<T>*>(right);
  for (int k = 0; k < depth; ++k) {
    const Quad<T> low = rows[k * (LeftStride / kQuad)], high = rows[k * (LeftStride / kQuad) + 1];
    const Quad<T> value = columns[k * (RightStride / kQuad)];
    CONVBASIS_UNROLL
    for (int r = 0; r < kQuad; ++r) {
      CONVBASIS_UNROLL
      for (int c = 0; c < kQuad; ++c) {
        sums.of[r][c] += low.of[r] * value.of[c];
        sums.of[r + kQuad][c] += high.of[r] * value.of[c];
      }
    }
  }
}

/// The same of whole matrices: thread t's part.
template <int LeftStride, int RightStride, class T>
CONVBASIS_DEVICE void add_products(int t, int depth, const T* left, const T* right,
                                   TileSums<T>& sums) {
  add_products<LeftStride, RightStride>(depth, left + tile_row(t), right + tile_column(t), sums);
}

}  // namespace convbasis::cuda
