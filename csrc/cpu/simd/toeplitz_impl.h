// Included by kernels_impl.h: direct products with the lags of one strip inside a diagonal block.
// R rows times C vectors of channels are kept in registers, edges included.

namespace convbasis {
namespace {

template <class T, class V>
struct DirectToeplitz {
  static constexpr index_t kLanes = static_cast<index_t>(V::size);
  static constexpr int kRows = 6, kVectors = CONVBASIS_SIMD_REGISTERS >= 32 ? 4 : 2;
  static constexpr index_t kTile = kDirectTile;  // rows of x that stay in the first cache
  static_assert(kTile % kRows == 0);

  /// sum[o] += weight(o) * row for o in [First, Last).
  template <int First, int Last, int R, int C, class Weight>
  XSIMD_INLINE static void add(V (&sum)[R][C], const T* row, const Weight& weight) {
    V value[C];
    for (int c = 0; c < C; ++c) value[c] = V::load_unaligned(row + c * kLanes);
    for (int o = First; o < Last; ++o) {
      const V factor(weight(o));
      for (int c = 0; c < C; ++c) sum[o][c] = xsimd::fma(factor, value[c], sum[o][c]);
    }
  }

  template <int R, int C>
  XSIMD_INLINE static void clear(V (&sum)[R][C]) {
    for (int o = 0; o < R; ++o)
      for (int c = 0; c < C; ++c) sum[o][c] = V(T(0));
  }
  /// y += sum: tiles are summed apart, for long sums lose more.
  template <int R, int C>
  XSIMD_INLINE static void add_to(Rows<T> y, const V (&sum)[R][C], index_t first, index_t channel) {
    for (int o = 0; o < R; ++o) {
      for (int c = 0; c < C; ++c) {
        T* target = y.row(first + o) + channel + c * kLanes;
        (V::load_unaligned(target) + sum[o][c]).store_unaligned(target);
      }
    }
  }

  /// Columns i + Step .. i + R - 1, which only the later ones of rows i .. i + R - 1 see.
  template <int Step, int R, int C>
  XSIMD_INLINE static void add_edge(V (&sum)[R][C], const T* kernel, Rows<const T> x, index_t i,
                                    index_t end, index_t channel) {
    if constexpr (Step < R) {
      if (i + Step >= end) return;
      add<Step, R>(sum, x.row(i + Step) + channel, [=](int o) { return kernel[o - Step]; });
      add_edge<Step + 1>(sum, kernel, x, i, end, channel);
    }
  }

  /// Rows i .. i + R - 1 of the strip with columns [begin, end).
  template <int R, int C>
  static void rows(const T* kernel, index_t begin, index_t end, index_t i, Rows<const T> x,
                   Rows<T> y, index_t channel) {
    V sum[R][C];
    clear(sum);
    const index_t last = i < end ? i + 1 : end;
    for (index_t j = begin; j < last; ++j) {
      const T* weights = kernel + (i - j);
      add<0, R>(sum, x.row(j) + channel, [=](int o) { return weights[o]; });
    }
    add_edge<1>(sum, kernel, x, i, end, channel);
    add_to(y, sum, i, channel);
  }

  /// Rows i .. j + R - 2 of the columns j .. j + R - 1, of which only the earlier ones reach them.
  template <int Step, int R, int C>
  XSIMD_INLINE static void add_transposed_edge(V (&sum)[R][C], const T* kernel, Rows<const T> x,
                                               index_t j, index_t channel) {
    if constexpr (Step + 1 < R) {
      add<0, Step + 1>(sum, x.row(j + Step) + channel, [=](int o) { return kernel[Step - o]; });
      add_transposed_edge<Step + 1>(sum, kernel, x, j, channel);
    }
  }

  /// Columns j .. j + R - 1 of a strip over rows [first, stop), first <= j or first >= j + R.
  template <int R, int C>
  static void columns(const T* kernel, index_t j, index_t first, index_t stop, Rows<const T> x,
                      Rows<T> y, index_t channel) {
    V sum[R][C];
    clear(sum);
    if (first <= j) {
      add_transposed_edge<0>(sum, kernel, x, j, channel);
      first = j + R - 1;
    }
    for (index_t i = first; i < stop; ++i) {
      const T* weights = kernel + (i - j);
      add<0, R>(sum, x.row(i) + channel, [=](int o) { return weights[-o]; });
    }
    add_to(y, sum, j, channel);
  }

  /// run(R, C, channel) for all channels, C vectors at a time.
  template <int R, class Run>
  static void each_channel(index_t channels, const Run& run) {
    using Height = std::integral_constant<int, R>;
    index_t channel = 0;
    for (; channel + kVectors * kLanes <= channels; channel += kVectors * kLanes)
      run(Height(), std::integral_constant<int, kVectors>(), channel);
    for (; channel < channels; channel += kLanes)
      run(Height(), std::integral_constant<int, 1>(), channel);
  }

  static void multiply(const T* kernel, index_t begin, index_t end, index_t stop, Rows<const T> x,
                       Rows<T> y, index_t channels) {
    for (index_t first = begin; first < end; first += kTile) {
      const index_t last = first + kTile < end ? first + kTile : end;
      index_t i = first;
      const auto run = [&](auto height, auto vectors, index_t channel) {
        rows<height, vectors>(kernel, first, last, i, x, y, channel);
      };
      for (; i + kRows <= stop; i += kRows) each_channel<kRows>(channels, run);
      for (; i + 2 <= stop; i += 2) each_channel<2>(channels, run);
      for (; i < stop; ++i) each_channel<1>(channels, run);
    }
  }

  static void multiply_transposed(const T* kernel, index_t begin, index_t end, index_t stop,
                                  Rows<const T> x, Rows<T> y, index_t channels) {
    for (index_t first = begin; first < stop; first += kTile) {
      const index_t last = first + kTile < stop ? first + kTile : stop;
      const index_t seen = last < end ? last : end;  // columns that reach these rows
      index_t j = begin;
      const auto run = [&](auto height, auto vectors, index_t channel) {
        columns<height, vectors>(kernel, j, first, last, x, y, channel);
      };
      for (; j + kRows <= seen; j += kRows) each_channel<kRows>(channels, run);
      for (; j + 2 <= seen; j += 2) each_channel<2>(channels, run);
      for (; j < seen; ++j) each_channel<1>(channels, run);
    }
  }
};

}  // namespace
}  // namespace convbasis
