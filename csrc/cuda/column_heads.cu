#include "core/buffer.h"
#include "cuda/column_heads.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 128, kColumns = 64, kDepth = 32;
constexpr int kEntries = 8;                                         // of a thread
constexpr int kWindow = kThreads / kColumns * kEntries;             // of a thread block
constexpr int kRows = kColumns + kWindow;                           // of queries, one to spare
constexpr int kKeyStride = kColumns + 4, kQueryStride = kRows + 4;  // see fill()

/// A thread block has kWindow entries of kColumns columns; the threads of a warp have neighbouring
/// columns.
template <class T>
struct BandDots {
  static constexpr std::size_t kSharedBytes = sizeof(T) * kDepth * (kKeyStride + kQueryStride);
  struct Dots {
    T of[kEntries];
  };

  Array<T> query, key;
  T scale;
  index_t first_head, window, columns, column_tiles, window_tiles;
  T* entries;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    T* keys = reinterpret_cast<T*>(block.shared);  // (kDepth, kKeyStride)
    T* queries = keys + kDepth * kKeyStride;       // (kDepth, kQueryStride)
    const index_t column = block.index % column_tiles * kColumns;
    const index_t rest = block.index / column_tiles;
    const index_t entry = rest % window_tiles * kWindow, local = rest / window_tiles;
    PerThread<Dots, kThreads> dots;
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kEntries; ++e) dots[t].of[e] = T(0);
    });
    for (index_t c = 0; c < key.channels; c += kDepth) {
      fill<kColumns, kKeyStride>(block, key, local, column, c, keys);
      fill<kRows, kQueryStride>(block, query, local, column + entry, c, queries);
      block.each(kThreads, [&](int t) {
        const int j = t % kColumns, first = j + t / kColumns * kEntries;
        for (int depth = 0; depth < kDepth; ++depth) {
          const T value = keys[depth * kKeyStride + j];
          CONVBASIS_UNROLL
          for (int e = 0; e < kEntries; ++e)
            dots[t].of[e] += value * queries[depth * kQueryStride + first + e];
        }
      });
    }
    block.each(kThreads, [&](int t) {
      const index_t j = column + t % kColumns, first = entry + t / kColumns * kEntries;
      CONVBASIS_UNROLL
      for (int e = 0; e < kEntries; ++e)
        if (j < columns && first + e < window)
          entries[(local * window + first + e) * columns + j] = scale * dots[t].of[e];
    });
  }

  /// to(depth, i) = channel c + depth of row `row` + i, 0 outside. A warp reads 8 neighbouring
  /// channels of 4 rows, and writes to as many banks as it has threads.
  template <int Rows, int Stride>
  CONVBASIS_DEVICE void fill(Block<kThreads>& block, const Array<T>& from, index_t local,
                             index_t row, index_t c, T* to) const {
    static_assert(Rows % 4 == 0 && Stride % 8 == 4);
    block.each(kDepth * Rows, [&](int i) {
      const int depth = i % 8 + i / 32 % (kDepth / 8) * 8, at = i / 8 % 4 + i / (4 * kDepth) * 4;
      to[depth * Stride + at] = row + at < from.rows && c + depth < from.channels
                                    ? from.load(first_head + local, row + at, c + depth)
                                    : T(0);
    });
  }
};

}  // namespace

template <class T>
void form_column_heads(const Array<T>& query, const Array<T>& key, double scale, index_t first_head,
                       index_t heads, index_t window, index_t columns, T* entries,
                       const Stream& stream) {
  using Kernel = BandDots<T>;
  const index_t column_tiles = ceil_div(columns, kColumns),
                window_tiles = ceil_div(window, kWindow);
  launch_blocks<kThreads>(stream, heads * window_tiles * column_tiles, Kernel::kSharedBytes,
                          Kernel{query, key, static_cast<T>(scale), first_head, window, columns,
                                 column_tiles, window_tiles, entries});
}

template void form_column_heads(const Array<float>&, const Array<float>&, double, index_t, index_t,
                                index_t, index_t, float*, const Stream&);
template void form_column_heads(const Array<double>&, const Array<double>&, double, index_t,
                                index_t, index_t, index_t, double*, const Stream&);

}  // namespace convbasis::cuda
