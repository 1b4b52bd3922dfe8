#include <type_traits>

#include "core/buffer.h"
#include "cuda/direct.h"
#include "cuda/register_tile.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = kTileThreads, kDepth = 32;

/// A thread block has kTile outputs and kTile channels. Weights and inputs of kDepth rows of x are
/// in shared memory at a time.
template <class T>
struct DiagonalTiles {
  static constexpr std::size_t kSharedBytes =
      2 * sizeof(T) * kDepth * kTile + sizeof(std::int32_t) * kTile;
  StripTable<T> strips;
  Array<T> x, y;
  index_t diagonal;  // a power of two: a division would take as long as the products
  index_t row_tiles, channel_tiles;
  bool transpose;

  /// Entry of the matrix that takes row `source` of x to row `output` of y.
  [[nodiscard]] CONVBASIS_DEVICE T weight(int head, int strip, index_t output,
                                          index_t source) const {
    const index_t lag = transpose ? source - output : output - source;
    const bool inside = (output ^ source) < diagonal && source < x.rows;
    return strip >= 0 && lag >= 0 && inside && output < y.rows ? strips.kernel(head, strip)[lag]
                                                               : T(0);
  }

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* weights = reinterpret_cast<T*>(block.shared);  // (kDepth, kTile)
    auto* inputs = weights + kDepth * kTile;             // (kDepth, kTile)
    auto* columns = reinterpret_cast<std::int32_t*>(inputs + kDepth * kTile);
    const index_t channel = block.index % channel_tiles * kTile;
    const index_t rest = block.index / channel_tiles;
    const index_t output = rest % row_tiles * kTile;
    const int head = static_cast<int>(rest / row_tiles);
    const index_t past = output + kTile;  // the first output of the next tile
    const index_t begin = transpose ? output : output & -diagonal;
    index_t end = transpose ? (past + diagonal - 1) & -diagonal : past;
    if (end > x.rows) end = x.rows;
    if (!strips.is_listed(head)) end = begin;
    PerThread<TileSums<T>, kThreads> sums;
    block.each(kThreads, [&](int t) { sums[t].clear(); });
    for (index_t first = begin; first < end; first += kDepth) {
      const index_t column = transpose ? output : first;
      block.each(kTile, [&](int i) { columns[i] = strips.strip_of(head, column + i); });
      block.each(kDepth * kTile, [&](int i) {
        const int o = i % kTile, depth = i / kTile;
        const index_t source = first + depth;
        weights[i] = weight(head, columns[transpose ? o : depth], output + o, source);
        const index_t c = channel + o;
        inputs[i] = source < end && c < x.channels ? x.load(head, source, c) : T(0);
      });
      block.each(kThreads,
                 [&](int t) { add_products<kTile, kTile>(t, kDepth, weights, inputs, sums[t]); });
    }
    block.each(kThreads, [&](int t) {
      const index_t row = output + tile_row(t), c0 = channel + tile_column(t);
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        CONVBASIS_UNROLL
        for (int c = 0; c < kQuad; ++c)
          if (row + r < y.rows && c0 + c < y.channels)
            y.store(head, row + r, c0 + c, sums[t].of[r][c]);
      }
    });
  }
};

}  // namespace

template <class T>
void multiply_diagonal(const Strips<T>& strips, index_t diagonal, bool transpose, const Array<T>& x,
                       const Array<T>& y, const Stream& stream) {
  if constexpr (std::is_same_v<T, float>)
    if (x.element != Element::same)
      return multiply_diagonal_halves(strips, diagonal, transpose, x, y, stream);
  const index_t row_tiles = ceil_div(y.rows, kTile), channel_tiles = ceil_div(y.channels, kTile);
  const auto heads = static_cast<index_t>(strips.layouts.size());
  using Kernel = DiagonalTiles<T>;
  launch_blocks<kThreads>(
      stream, heads * row_tiles * channel_tiles, Kernel::kSharedBytes,
      Kernel{strips.table, x, y, diagonal, row_tiles, channel_tiles, transpose});
}

template void multiply_diagonal(const Strips<float>&, index_t, bool, const Array<float>&,
                                const Array<float>&, const Stream&);
template void multiply_diagonal(const Strips<double>&, index_t, bool, const Array<double>&,
                                const Array<double>&, const Stream&);

}  // namespace convbasis::cuda
