#include "core/buffer.h"
#include "cuda/row_tiles.h"
#include "cuda/start_gradient.h"

// Kernels of logits are products of queries with the keys that strips begin at.

namespace convbasis::cuda {
namespace {

constexpr int kThreads = kTileThreads;
constexpr index_t kSliceRows = 1024;  // of a partial sum of grad_key

/// What both products read.
template <class T>
struct KernelGradients {
  StripTable<T> logits;
  const T* grads;
  /// du of the logit of a row and the key that a strip begins at.
  [[nodiscard]] CONVBASIS_DEVICE T at(int head, int strip, index_t row) const {
    if (strip >= logits.counts[head] || row >= logits.rows) return T(0);
    const int lag = static_cast<int>(row - logits.begin(head, strip));
    return lag < 0 ? T(0) : grads[(head * logits.most + strip) * logits.rows + lag];
  }
};

/// A thread block has kTile rows and kTile channels of grad_query.
template <class T>
struct QueryGradient {
  static constexpr std::size_t kSharedBytes = sizeof(T) * 2 * kDepth<T> * kTile;
  KernelGradients<T> kernels;
  Array<T> key, grad_query;
  const HeadUnits* units;
  double scale;
  index_t row_tiles, channel_tiles;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    constexpr int kStrips = kDepth<T>;
    T* lefts = reinterpret_cast<T*>(block.shared);  // (kStrips, kTile)
    T* rights = lefts + kStrips * kTile;            // (kStrips, kTile)
    const index_t channel = block.index % channel_tiles * kTile;
    const index_t rest = block.index / channel_tiles, row = rest % row_tiles * kTile;
    const int head = static_cast<int>(rest / row_tiles), count = kernels.logits.counts[head];
    if (!kernels.logits.is_listed(head)) return;
    PerThread<TileSums<T>, kThreads> sums;
    block.each(kThreads, [&](int t) { sums[t].clear(); });
    for (int first = 0; first < count; first += kStrips) {
      if (kernels.logits.begin(head, first) >= row + kTile) break;
      block.each(kStrips * kTile, [&](int i) {
        const int at = i % kTile, strip = first + i / kTile;
        const index_t c = channel + at;
        lefts[i] = kernels.at(head, strip, row + at);
        rights[i] = strip < count && c < key.channels
                        ? key.load(head, kernels.logits.begin(head, strip), c)
                        : T(0);
      });
      block.each(kThreads,
                 [&](int t) { add_products<kTile, kTile>(t, kStrips, lefts, rights, sums[t]); });
    }
    const HeadUnits unit = units[head];
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        CONVBASIS_UNROLL
        for (int k = 0; k < kQuad; ++k) {
          const index_t i = row + tile_row(t) + r, c = channel + tile_column(t) + k;
          const auto sum = static_cast<double>(sums[t].of[r][k]);
          if (i < grad_query.rows && c < grad_query.channels)
            grad_query.store(head, i, c, static_cast<T>(unit.without_both(sum, scale)));
        }
      }
    });
  }
};

/// A thread block has what one slice of rows gives to kTile strips and kTile channels.
template <class T>
struct SliceOfKeyGradient {
  static constexpr std::size_t kSharedBytes = sizeof(T) * kDepth<T> * (kTileStride + kTile);
  KernelGradients<T> kernels;
  Array<T> query;
  index_t slices, strip_tiles, channel_tiles;
  T* sums;  // (all heads, slices, most, channels)

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    constexpr int kRows = kDepth<T>;
    T* lefts = reinterpret_cast<T*>(block.shared);  // (kRows, kTileStride)
    T* rights = lefts + kRows * kTileStride;        // (kRows, kTile)
    const index_t channel = block.index % channel_tiles * kTile;
    const index_t rest = block.index / channel_tiles, part = rest / strip_tiles;
    const int strip = static_cast<int>(rest % strip_tiles) * kTile;
    const int head = static_cast<int>(part / slices);
    const index_t begin = part % slices * kSliceRows, slice_end = begin + kSliceRows;
    const index_t end = slice_end < query.rows ? slice_end : query.rows;
    PerThread<TileSums<T>, kThreads> dots;
    block.each(kThreads, [&](int t) { dots[t].clear(); });
    const bool any = strip < kernels.logits.counts[head] && kernels.logits.begin(head, strip) < end;
    for (index_t first = begin; any && first < end; first += kRows) {
      block.each(kRows * kTile, [&](int i) {
        // As multiply_rows does, with rows for channels.
        const int depth = i % 8 + i / 32 % (kRows / 8) * 8, at = i / 8 % 4 + i / (4 * kRows) * 4;
        lefts[depth * kTileStride + at] = kernels.at(head, strip + at, first + depth);
      });
      block.each(kRows * kTile, [&](int i) {
        const index_t row = first + i / kTile, c = channel + i % kTile;
        rights[i] = row < end && c < query.channels ? query.load(head, row, c) : T(0);
      });
      block.each(kThreads, [&](int t) {
        add_products<kTileStride, kTile>(t, kRows, lefts, rights, dots[t]);
      });
    }
    const index_t most = kernels.logits.most;
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        CONVBASIS_UNROLL
        for (int k = 0; k < kQuad; ++k) {
          const index_t to = strip + tile_row(t) + r, c = channel + tile_column(t) + k;
          if (to < most && c < query.channels)
            sums[(part * most + to) * query.channels + c] = dots[t].of[r][k];
        }
      }
    });
  }
};

/// One thread a strip and channel. Of the strips of a group that begin at the same key, the first
/// head's adds them all.
template <class T>
struct AddKeyGradients {
  StripTable<T> logits;
  const T* sums;
  const HeadUnits* units;
  double scale;
  index_t slices;
  Array<T> grad_key;

  /// The strip of a head that begins at a key, or -1.
  [[nodiscard]] CONVBASIS_DEVICE int strip_at(int head, index_t start) const {
    const int strip = logits.strip_of(head, start);
    return strip >= 0 && logits.begin(head, strip) == start ? strip : -1;
  }

  CONVBASIS_DEVICE void operator()(index_t strip_index, index_t c) const {
    const int flat = static_cast<int>(strip_index);
    const int mine = flat / logits.most, strip = flat % logits.most;
    if (strip >= logits.counts[mine]) return;
    const index_t start = logits.begin(mine, strip);
    const int group = static_cast<int>(grad_key.group), first = mine / group * group;
    for (int head = first; head < mine; ++head)
      if (strip_at(head, start) >= 0) return;
    double total = 0;
    for (int head = mine; head < first + group; ++head) {
      const int other = strip_at(head, start);
      if (other < 0) continue;
      T sum = 0;
      for (index_t slice = start / kSliceRows; slice < slices; ++slice)
        sum += sums[((head * slices + slice) * logits.most + other) * grad_key.channels + c];
      total += units[head].without_both(static_cast<double>(sum), scale);
    }
    const auto before = static_cast<double>(grad_key.load(mine, start, c));
    grad_key.store(mine, start, c, static_cast<T>(before + total));
  }
};

}  // namespace

template <class T>
void add_kernel_gradients(const Strips<T>& logits, const T* kernel_grads, const HeadUnits* units,
                          double scale, const Array<T>& query, const Array<T>& key,
                          const Array<T>& grad_query, const Array<T>& grad_key,
                          const Stream& stream) {
  const StripTable<T>& table = logits.table;
  const auto all = static_cast<index_t>(logits.layouts.size());
  const index_t row_tiles = ceil_div(table.rows, kTile), slices = ceil_div(table.rows, kSliceRows);
  const index_t channels = query.channels, channel_tiles = ceil_div(channels, kTile);
  const index_t strip_tiles = ceil_div(table.most, kTile);
  const KernelGradients<T> kernels{table, kernel_grads};
  using OfQuery = QueryGradient<T>;
  launch_blocks<kThreads>(
      stream, all * row_tiles * channel_tiles, OfQuery::kSharedBytes,
      OfQuery{kernels, key, grad_query, units, scale, row_tiles, channel_tiles});
  const DeviceBuffer<T> sums(stream, all * slices * table.most * channels);
  using OfKey = SliceOfKeyGradient<T>;
  launch_blocks<kThreads>(stream, all * slices * strip_tiles * channel_tiles, OfKey::kSharedBytes,
                          OfKey{kernels, query, slices, strip_tiles, channel_tiles, sums.data()});
  launch(stream, all * table.most, channels,
         AddKeyGradients<T>{table, sums.data(), units, scale, slices, grad_key});
}

#define CONVBASIS_INSTANTIATE(T)                                                           \
  template void add_kernel_gradients(const Strips<T>&, const T*, const HeadUnits*, double, \
                                     const Array<T>&, const Array<T>&, const Array<T>&,    \
                                     const Array<T>&, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
