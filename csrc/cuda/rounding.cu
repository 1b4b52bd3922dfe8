#include <limits>

#include "core/buffer.h"
#include "cuda/numeric.h"
#include "cuda/rounding.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 8, kRows = kThreads / kLanes;

template <class T>
struct MeasureRows {
  static constexpr std::size_t kSharedBytes = sizeof(double) * 2 * kThreads;
  Array<T> x;
  index_t tiles;
  double *squares, *peaks;  // peaks: (all heads, tiles)
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* sums = reinterpret_cast<double*>(block.shared);
    double* tops = sums + kThreads;
    const index_t head = block.index / tiles, first = block.index % tiles * kRows;
    block.each(kThreads, [&](int t) {
      const index_t row = first + t / kLanes;
      double sum = 0, top = 0;
      for (index_t c = t % kLanes; row < x.rows && c < x.channels; c += kLanes) {
        const auto value = static_cast<double>(x.load(head, row, c));
        sum += value * value;
        top = larger_of(top, fabs(value));
      }
      sums[t] = sum;
      tops[t] = top;
    });
    block.each(kRows, [&](int r) {
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[r * kLanes + lane];
      if (first + r < x.rows) squares[head * x.rows + first + r] = sum;
    });
    max_all(block, tops);
    block.each(1, [&](int) { peaks[block.index] = tops[0]; });
  }
};

struct LargestOfTiles {
  const double* tops;
  index_t tiles;
  double* peaks;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    block.each(kThreads, [&](int t) {
      double top = 0;
      for (index_t i = t; i < tiles; i += kThreads)
        top = larger_of(top, tops[block.index * tiles + i]);
      values[t] = top;
    });
    max_all(block, values);
    block.each(1, [&](int) { peaks[block.index] = values[0]; });
  }
};

/// |window|^2, one thread block a window.
template <class T>
struct WindowSquares {
  StripTable<T> strips;
  const Window* windows;
  index_t length;
  double* squares;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const Window window = windows[block.index];
    const T* kernel = strips.kernel(window.head, window.strip) + window.first;
    const index_t count = window.limit < length ? window.limit : length;
    block.each(kThreads, [&](int t) {
      double sum = 0;
      for (index_t u = t; u < count; u += kThreads) {
        const auto value = static_cast<double>(kernel[u]);
        sum += value * value;
      }
      values[t] = sum;
    });
    sum_all(block, values);
    block.each(1, [&](int) { squares[block.index] = values[0]; });
  }
};

/// |piece|^2, one thread block a piece.
struct PieceSquares {
  const Slot* pieces;
  const double* row_squares;
  index_t columns;
  double* squares;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const Slot piece = pieces[block.index];
    block.each(kThreads, [&](int t) {
      double sum = 0;
      for (index_t row = piece.first + t; row < piece.last; row += kThreads)
        sum += row_squares != nullptr ? row_squares[piece.head * columns + row] : 1.0;
      values[t] = sum;
    });
    sum_all(block, values);
    block.each(1, [&](int) { squares[block.index] = values[0]; });
  }
};

/// The sum of |window|^2 |piece|^2 over the pieces that act on a block. One thread an output: tiles
/// are rows, outputs of a tile are columns.
struct AddBlockErrors {
  const Slot *inputs, *outputs;
  const Tile* tiles;
  const double *piece_squares, *window_squares;
  index_t block;
  double factor;
  index_t granules;
  double* squares;
  CONVBASIS_DEVICE void operator()(index_t tile_index, index_t column) const {
    const Tile tile = tiles[tile_index];
    if (column >= tile.outputs) return;
    const Slot output = outputs[tile.output + column];
    double sum = 0;
    for (int i = tile.input; i < tile.input + tile.inputs; ++i)
      if (inputs[i].block < output.block)
        sum += piece_squares[i] * window_squares[inputs[i].base + output.block];
    for (index_t row = output.first; row < output.last; row += kErrorRows)
      squares[output.head * granules + row / kErrorRows] += factor * sum;
  }
};

}  // namespace

template <class T>
void add_rounding(const Strips<T>& strips, const LevelPlan& plan, const Window* windows,
                  const Slot* inputs, const Slot* outputs, const Tile* tiles,
                  const RoundingErrors& errors, const Stream& stream) {
  constexpr std::size_t kSharedBytes = sizeof(double) * kThreads;
  const index_t length = 2 * plan.level.block;
  const DeviceBuffer<double> of_windows(stream, static_cast<index_t>(plan.windows.size()));
  const DeviceBuffer<double> of_pieces(stream, static_cast<index_t>(plan.inputs.size()));
  launch_blocks<kThreads>(stream, of_windows.size(), kSharedBytes,
                          WindowSquares<T>{strips.table, windows, length, of_windows.data()});
  launch_blocks<kThreads>(
      stream, of_pieces.size(), kSharedBytes,
      PieceSquares{inputs, errors.row_squares, errors.columns, of_pieces.data()});
  // A product errs by about eps * sqrt(log2 N) * |window| |piece| / 8 in each output.
  const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) / 8;
  const double factor = unit * unit * std::log2(static_cast<double>(length));
  for (const Chunk& chunk : plan.chunks)
    launch(stream, chunk.tiles, kTileOutputs,
           AddBlockErrors{inputs + chunk.input, outputs + chunk.output, tiles + chunk.tile,
                          of_pieces.data() + chunk.input, of_windows.data(), plan.level.block,
                          factor, errors.granules, errors.squares});
}

template <class T>
void measure_rows(const Array<T>& x, index_t all_heads, double* squares, double* peaks,
                  const Stream& stream) {
  const index_t tiles = ceil_div(x.rows, kRows);
  const DeviceBuffer<double> tops(stream, all_heads * tiles);
  using Kernel = MeasureRows<T>;
  launch_blocks<kThreads>(stream, all_heads * tiles, Kernel::kSharedBytes,
                          Kernel{x, tiles, squares, tops.data()});
  launch_blocks<kThreads>(stream, all_heads, sizeof(double) * kThreads,
                          LargestOfTiles{tops.data(), tiles, peaks});
}

#define CONVBASIS_INSTANTIATE(T)                                                              \
  template void add_rounding(const Strips<T>&, const LevelPlan&, const Window*, const Slot*,  \
                             const Slot*, const Tile*, const RoundingErrors&, const Stream&); \
  template void measure_rows(const Array<T>&, index_t, double*, double*, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
