#include "core/buffer.h"
#include "cuda/direct_correlation.h"
#include "cuda/row_tiles.h"

// The tile of kTile rows of y that lies `m` tiles below kTile rows of x has lags (m - 1) kTile + 1
// to (m + 1) kTile - 1, on its diagonals. Tiles of a strip with the same m are summed before their
// diagonals are: lag t comes from diagonal kTile + t % kTile of m = t / kTile, and from diagonal
// t % kTile of the next m.

namespace convbasis::cuda {
namespace {

constexpr int kThreads = kTileThreads, kDiagonals = 2 * kTile;
constexpr index_t kSliceColumns = 2048;  // of one thread block, a multiple of kTile

/// Columns [first, last) of one strip.
struct StripSlice {
  std::int32_t head, first, last;
};

template <class T>
struct CorrelateSlices {
  static constexpr int kSumStride = kTile + 1;  // a diagonal's elements are in all banks
  static constexpr std::size_t kSharedBytes =
      sizeof(T) * (kOperands<T> > kTile * kSumStride ? kOperands<T> : kTile * kSumStride);
  Array<T> x, y;
  const StripSlice* slices;
  index_t reach;  // tiles of a block on the diagonal
  T* sums;        // (slices, reach, kDiagonals)

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* memory = reinterpret_cast<T*>(block.shared);
    const StripSlice slice = slices[block.index / reach];
    const int m = static_cast<int>(block.index % reach), blocks = static_cast<int>(reach);
    PerThread<TileSums<T>, kThreads> dots;
    block.each(kThreads, [&](int t) { dots[t].clear(); });
    for (int tile = slice.first / kTile; tile * kTile < slice.last; ++tile)
      if (tile % blocks + m < blocks && (tile + m) * index_t{kTile} < y.rows)
        add_tile(block, slice, tile * kTile, (tile + m) * kTile, memory, dots);
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        CONVBASIS_UNROLL
        for (int c = 0; c < kQuad; ++c)
          memory[(tile_row(t) + r) * kSumStride + tile_column(t) + c] = dots[t].of[r][c];
      }
    });
    block.each(kDiagonals, [&](int d) {
      const int below = d - kTile;  // of the main diagonal
      const int first = below < 0 ? 0 : below, last = below < 0 ? kTile + below : kTile;
      T sum = 0;
      for (int r = first; r < last; ++r) sum += memory[r * kSumStride + r - below];
      sums[block.index * kDiagonals + d] = sum;
    });
  }

  /// dots(r, c) += y of row `row` + r . x of row `column` + c, if that is in the slice.
  CONVBASIS_DEVICE void add_tile(Block<kThreads>& block, const StripSlice& slice, int column,
                                 int row, T* operands,
                                 PerThread<TileSums<T>, kThreads>& dots) const {
    constexpr int kChannels = kDepth<T>;
    T* lefts = operands;
    T* rights = operands + kChannels * kTileStride;
    for (index_t first = 0; first < x.channels; first += kChannels) {
      block.each(kChannels * kTile, [&](int i) {
        // As multiply_rows does.
        const int depth = i % 8 + i / 32 % (kChannels / 8) * 8;
        const int at = i / 8 % 4 + i / (4 * kChannels) * 4;
        const index_t c = first + depth;
        const bool inside = c < x.channels;
        const bool taken = inside && column + at >= slice.first && column + at < slice.last;
        lefts[depth * kTileStride + at] =
            inside && row + at < y.rows ? y.load(slice.head, row + at, c) : T(0);
        rights[depth * kTileStride + at] = taken ? x.load(slice.head, column + at, c) : T(0);
      });
      block.each(kThreads, [&](int t) {
        add_products<kTileStride, kTileStride>(t, kChannels, lefts, rights, dots[t]);
      });
    }
  }
};

/// Adds up the slices of each strip.
template <class T>
struct SumSlices {
  StripTable<T> strips;
  const T* sums;
  const std::int32_t* first_slice;  // (all heads * most + 1)
  index_t reach;
  T* out;
  CONVBASIS_DEVICE void operator()(index_t strip_index, index_t lag) const {
    const auto index = static_cast<std::int32_t>(strip_index);
    if (lag >= strips.lags(index / strips.most, index % strips.most)) return;
    const int m = static_cast<int>(lag) / kTile, rest = static_cast<int>(lag) % kTile;
    T sum = 0;
    for (int i = first_slice[index]; m < reach && i < first_slice[index + 1]; ++i) {
      const T* mine = sums + (i * reach + m) * kDiagonals + rest;
      sum += mine[kTile];
      if (m + 1 < reach) sum += mine[kDiagonals];
    }
    out[strip_index * strips.rows + lag] = sum;
  }
};

}  // namespace

template <class T>
void correlate_diagonal(const Strips<T>& strips, index_t diagonal, const Array<T>& x,
                        const Array<T>& y, T* out, const Stream& stream) {
  const StripTable<T>& table = strips.table;
  std::vector<StripSlice> slices;
  std::vector<std::int32_t> first_slice;
  for (std::size_t head = 0; head < strips.layouts.size(); ++head) {
    const StripLayout& layout = strips.layouts[head];
    for (index_t r = 0; r < table.most; ++r) {
      first_slice.push_back(static_cast<std::int32_t>(slices.size()));
      if (r >= layout.count()) continue;
      for (index_t first = layout.begin(r); first < layout.end(r);) {
        const index_t last = std::min((first / kSliceColumns + 1) * kSliceColumns, layout.end(r));
        slices.push_back({static_cast<std::int32_t>(head), static_cast<std::int32_t>(first),
                          static_cast<std::int32_t>(last)});
        first = last;
      }
    }
  }
  first_slice.push_back(static_cast<std::int32_t>(slices.size()));
  const auto count = static_cast<index_t>(slices.size());
  const index_t reach = ceil_div(std::min(diagonal, round_up(table.rows, kTile)), kTile);
  const DeviceBuffer<StripSlice> on_device = upload<StripSlice>(stream, slices);
  const DeviceBuffer<std::int32_t> firsts = upload<std::int32_t>(stream, first_slice);
  const DeviceBuffer<T> sums(stream, count * reach * kDiagonals);
  using Kernel = CorrelateSlices<T>;
  launch_blocks<kThreads>(stream, count * reach, Kernel::kSharedBytes,
                          Kernel{x, y, on_device.data(), reach, sums.data()});
  launch(stream, static_cast<index_t>(strips.layouts.size()) * table.most, table.rows,
         SumSlices<T>{table, sums.data(), firsts.data(), reach, out});
}

template void correlate_diagonal(const Strips<float>&, index_t, const Array<float>&,
                                 const Array<float>&, float*, const Stream&);
template void correlate_diagonal(const Strips<double>&, index_t, const Array<double>&,
                                 const Array<double>&, double*, const Stream&);

}  // namespace convbasis::cuda
