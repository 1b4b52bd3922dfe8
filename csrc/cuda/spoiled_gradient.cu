#include "core/buffer.h"
#include "cuda/numeric.h"
#include "cuda/row_tiles.h"
#include "cuda/spoiled_gradient.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = kTileThreads, kListThreads = 256;
constexpr int kChannels = 32, kStride = kChannels + 1;  // neighbouring rows begin in other banks

/// A thread block has a head, a thread neighbouring rows of it.
struct ListSpoiled {
  static constexpr std::size_t kSharedBytes = sizeof(std::int32_t) * (kListThreads + 1);
  const std::int32_t* spoiled;
  index_t rows, share;
  std::int32_t *list, *counts;
  CONVBASIS_DEVICE void operator()(Block<kListThreads> block) const {
    auto* places = reinterpret_cast<std::int32_t*>(block.shared);
    const std::int32_t* flags = spoiled + block.index * rows;
    block.each(kListThreads, [&](int t) {
      std::int32_t count = 0;
      for (index_t i = t * share; i < (t + 1) * share && i < rows; ++i) count += flags[i];
      places[t + 1] = count;
    });
    block.each(1, [&](int) {
      places[0] = 0;
      for (int t = 0; t < kListThreads; ++t) places[t + 1] += places[t];
      counts[block.index] = places[kListThreads];
    });
    block.each(kListThreads, [&](int t) {
      std::int32_t* to = list + block.index * rows + places[t];
      for (index_t i = t * share; i < (t + 1) * share && i < rows; ++i)
        if (flags[i] != 0) *to++ = static_cast<std::int32_t>(i);
    });
  }
};

/// A thread block has kTile columns and kTile channels.
template <class T>
struct AddSpoiledValues {
  static constexpr std::size_t kSharedBytes =
      sizeof(T) * 2 * kDepth<T> * kTile + sizeof(std::int32_t) * kTile;
  SpoiledGradient<T> s;
  Array<T> grad_value;
  index_t column_tiles, channel_tiles;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    constexpr int kRows = kDepth<T>;
    T* lefts = reinterpret_cast<T*>(block.shared);  // (kRows, kTile)
    T* rights = lefts + kRows * kTile;              // (kRows, kTile)
    auto* strips = reinterpret_cast<std::int32_t*>(rights + kRows * kTile);
    const index_t channel = block.index % channel_tiles * kTile;
    const index_t rest = block.index / channel_tiles, column = rest % column_tiles * kTile;
    const int head = static_cast<int>(rest / column_tiles), count = s.counts[head];
    const std::int32_t* list = s.rows + head * s.logits.rows;
    const int begin = s.place_of(head, column);
    if (begin == count) return;
    const double unit = s.units[head].grad;
    PerThread<TileSums<T>, kThreads> sums;
    block.each(kThreads, [&](int t) {
      sums[t].clear();
      if (t < kTile) strips[t] = s.logits.strip_of(head, column + t);
    });
    for (int first = begin; first < count; first += kRows) {
      block.each(kRows * kTile, [&](int i) {
        const int at = i % kTile, place = first + i / kTile;
        const index_t row = place < count ? list[place] : -1, c = channel + at;
        lefts[i] = s.weight(head, strips[at], row, column + at);
        rights[i] = row >= 0 && c < grad_value.channels
                        ? s.grad_output.load(head, row, c) * static_cast<T>(unit)
                        : T(0);
      });
      block.each(kThreads,
                 [&](int t) { add_products<kTile, kTile>(t, kRows, lefts, rights, sums[t]); });
    }
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        CONVBASIS_UNROLL
        for (int k = 0; k < kQuad; ++k) {
          const index_t j = column + tile_row(t) + r, c = channel + tile_column(t) + k;
          if (j < grad_value.rows && c < grad_value.channels)
            grad_value.store(head, j, c, grad_value.load(head, j, c) + sums[t].of[r][k]);
        }
      }
    });
  }
};

/// A thread has one lag of a strip. Of each row, the values that the block's lags meet go through
/// shared memory.
template <class T>
struct AddSpoiledKernels {
  static constexpr std::size_t kSharedBytes = sizeof(T) * (kThreads * kStride + kChannels);
  SpoiledGradient<T> s;
  index_t lag_tiles;
  T* kernel_grads;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    const index_t strip_index = block.index / lag_tiles;
    const int head = static_cast<int>(strip_index / s.logits.most);
    const int strip = static_cast<int>(strip_index % s.logits.most), count = s.counts[head];
    const index_t first = block.index % lag_tiles * kThreads;
    const index_t lags = s.logits.lags(head, strip);
    if (count == 0 || first >= lags) return;
    const index_t begin = s.logits.begin(head, strip), end = s.logits.end(head, strip);
    const std::int32_t* list = s.rows + head * s.logits.rows;
    const T* logits = s.logits.kernel(head, strip);
    PerThread<T, kThreads> sums, dots;
    block.each(kThreads, [&](int t) { sums[t] = 0; });
    for (int i = s.place_of(head, begin + first); i < count; ++i) {
      const index_t row = list[i];
      if (row >= end + first + kThreads - 1) break;
      form_dots(block, head, row, first, dots);
      const double lse = s.lse[head * s.logits.rows + row];
      const T delta = s.delta_of(head, row);
      block.each(kThreads, [&](int t) {
        const index_t lag = first + t, column = row - lag;
        if (lag >= s.first_lag && lag < lags && column >= begin && column < end)
          sums[t] +=
              static_cast<T>(exp(static_cast<double>(logits[lag]) - lse)) * (dots[t] - delta);
      });
    }
    block.each(kThreads, [&](int t) {
      if (first + t < lags) kernel_grads[strip_index * s.logits.rows + first + t] += sums[t];
    });
  }

  /// dots[t] = G of a row . V of the key `first` + t before it.
  CONVBASIS_DEVICE void form_dots(Block<kThreads>& block, int head, index_t row, index_t first,
                                  PerThread<T, kThreads>& dots) const {
    T* values = reinterpret_cast<T*>(block.shared);  // (kThreads, kStride)
    T* grads = values + kThreads * kStride;
    const T unit = static_cast<T>(s.units[head].grad);
    block.each(kThreads, [&](int t) { dots[t] = 0; });
    for (index_t channel = 0; channel < s.value.channels; channel += kChannels) {
      block.each(kThreads * kChannels, [&](int i) {
        const int at = i / kChannels, depth = i % kChannels;
        const index_t column = row - first - at, c = channel + depth;
        const bool inside = c < s.value.channels;
        values[at * kStride + depth] =
            inside && column >= 0 && column < s.value.rows ? s.value.load(head, column, c) : T(0);
        if (at == 0) grads[depth] = inside ? s.grad_output.load(head, row, c) * unit : T(0);
      });
      block.each(kThreads, [&](int t) {
        T sum = 0;
        for (int depth = 0; depth < kChannels; ++depth)
          sum += values[t * kStride + depth] * grads[depth];
        dots[t] += sum;
      });
    }
  }
};

}  // namespace

SpoiledRows list_spoiled(const std::int32_t* spoiled, index_t all, index_t rows,
                         const Stream& stream) {
  SpoiledRows list{DeviceBuffer<std::int32_t>(stream, all * rows),
                   DeviceBuffer<std::int32_t>(stream, all)};
  launch_blocks<kListThreads>(stream, all, ListSpoiled::kSharedBytes,
                              ListSpoiled{spoiled, rows, ceil_div(rows, kListThreads),
                                          list.rows.data(), list.counts.data()});
  return list;
}

template <class T>
void add_spoiled_values(const SpoiledGradient<T>& spoiled, const Array<T>& grad_value,
                        const Stream& stream) {
  const index_t column_tiles = ceil_div(grad_value.rows, kTile);
  const index_t channel_tiles = ceil_div(grad_value.channels, kTile);
  using Kernel = AddSpoiledValues<T>;
  launch_blocks<kThreads>(stream, grad_value.heads * column_tiles * channel_tiles,
                          Kernel::kSharedBytes,
                          Kernel{spoiled, grad_value, column_tiles, channel_tiles});
}

template <class T>
void add_spoiled_kernels(const SpoiledGradient<T>& spoiled, index_t all, T* kernel_grads,
                         const Stream& stream) {
  const index_t lag_tiles = ceil_div(spoiled.logits.rows, kThreads);
  using Kernel = AddSpoiledKernels<T>;
  launch_blocks<kThreads>(stream, all * spoiled.logits.most * lag_tiles, Kernel::kSharedBytes,
                          Kernel{spoiled, lag_tiles, kernel_grads});
}

#define CONVBASIS_INSTANTIATE(T)                                                               \
  template void add_spoiled_values(const SpoiledGradient<T>&, const Array<T>&, const Stream&); \
  template void add_spoiled_kernels(const SpoiledGradient<T>&, index_t, T*, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
