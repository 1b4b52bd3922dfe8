#include "core/buffer.h"
#include "core/shape.h"
#include "cuda/normalize.h"
#include "cuda/numeric.h"

// Row i of a strip of columns [begin, end) sums lags i - end + 1 to i - begin: a window of the
// strip's width. A tile of rows is as long as a run of lags. Of a wide strip, its windows share
// their middle; before it lies a suffix of one run of lags, behind it a prefix of another. Those,
// and the windows of a narrow strip, come from sums of 1, 2, 4, ... neighbours.

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256, kRun = 512, kEach = 2 * kRun / kThreads;

/// The sum of each run of lags.
template <class T>
struct RunTotals {
  StripTable<T> strips;
  index_t runs;    // of a strip
  double* totals;  // (all heads, most, runs)
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const index_t strip_index = block.index / runs;
    const int head = static_cast<int>(strip_index / strips.most);
    const int strip = static_cast<int>(strip_index % strips.most);
    const index_t first = block.index % runs * kRun, lags = strips.lags(head, strip);
    const T* kernel = strips.kernel(head, strip);
    block.each(kThreads, [&](int t) {
      double sum = 0;
      for (index_t lag = first + t; lag < first + kRun && lag < lags; lag += kThreads)
        sum += static_cast<double>(kernel[lag]);
      values[t] = sum;
    });
    sum_all(block, values);
    block.each(1, [&](int) { totals[block.index] = values[0]; });
  }
};

template <class T>
struct SumTileOfRows {
  static constexpr std::size_t kSharedBytes = sizeof(double) * (2 * kRun + kThreads);
  StripTable<T> strips;
  const double* totals;
  index_t runs, tiles;
  double* sums;

  struct Values {
    double of[kEach];
  };
  using Many = PerThread<Values, kThreads>;

  /// values[i] becomes the sum of `width` values from i on, in segments of `segment`.
  static CONVBASIS_DEVICE void sum_windows(Block<kThreads>& block, double* values, Many& next,
                                           Many& sum, int segment, int width) {
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kEach; ++e) sum[t].of[e] = 0;
    });
    for (int bit = 1, done = 0; bit <= width; bit *= 2) {
      const bool taken = (width & bit) != 0;
      block.each(kThreads, [&](int t) {
        CONVBASIS_UNROLL
        for (int e = 0; e < kEach; ++e) {
          const int i = t + e * kThreads, left = segment - i % segment;
          if (taken && done < left) sum[t].of[e] += values[i + done];
          next[t].of[e] = values[i] + (bit < left ? values[i + bit] : 0.0);
        }
      });
      if (taken) done += bit;
      block.each(kThreads, [&](int t) {
        CONVBASIS_UNROLL
        for (int e = 0; e < kEach; ++e) values[t + e * kThreads] = next[t].of[e];
      });
    }
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kEach; ++e) values[t + e * kThreads] = sum[t].of[e];
    });
  }

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    double* partial = values + 2 * kRun;
    const int head = static_cast<int>(block.index / tiles);
    const index_t row = block.index % tiles * kRun;
    Many next, sum, total;
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kEach; ++e) total[t].of[e] = 0;
    });
    for (int strip = 0; strip < strips.counts[head]; ++strip) {
      const index_t begin = strips.begin(head, strip), end = strips.end(head, strip);
      if (begin >= row + kRun) break;
      const index_t low = row - end + 1, high = row - begin;  // lags of the first row
      const index_t lags = strips.rows - begin, width = end - begin;
      const T* kernel = strips.kernel(head, strip);
      const double* my_totals = totals + (index_t{head} * strips.most + strip) * runs;
      const auto lag_value = [&](index_t lag) {
        return lag >= 0 && lag < lags ? static_cast<double>(kernel[lag]) : 0.0;
      };
      const bool wide = width >= kRun;
      block.each(2 * kRun, [&](int i) {
        if (!wide) {
          values[i] = i < kRun + width - 1 ? lag_value(low + i) : 0.0;
        } else if (i < kRun) {
          values[i] = low + i < high ? lag_value(low + i) : 0.0;  // summed towards its end
        } else {
          values[i] = lag_value(high + 2 * kRun - 1 - i);  // reversed: towards its beginning
        }
      });
      sum_windows(block, values, next, sum, wide ? kRun : 2 * kRun,
                  wide ? kRun : static_cast<int>(width));
      if (wide) sum_middle(block, lag_value, my_totals, low + kRun, high, partial);
      block.each(kThreads, [&](int t) {
        CONVBASIS_UNROLL
        for (int e = 0; e < kRun / kThreads; ++e) {
          const int i = t + e * kThreads;
          total[t].of[e] += wide ? values[i] + partial[0] + values[2 * kRun - 1 - i] : values[i];
        }
      });
    }
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kRun / kThreads; ++e) {
        const index_t i = row + t + e * kThreads;
        if (i < strips.rows) sums[head * strips.rows + i] = total[t].of[e];
      }
    });
  }

  /// partial[0] = the sum of lags [first, last): whole runs, and what lies before and behind them.
  template <class LagValue>
  static CONVBASIS_DEVICE void sum_middle(Block<kThreads>& block, const LagValue& lag_value,
                                          const double* totals, index_t first, index_t last,
                                          double* partial) {
    if (first < 0) first = 0;
    const index_t run = (first + kRun - 1) / kRun, stop = last > 0 ? last / kRun : 0;
    const index_t head_end = run * kRun < last ? run * kRun : last;
    const index_t tail = stop > run ? stop * kRun : head_end;
    block.each(kThreads, [&](int t) {
      double sum = 0;
      for (index_t lag = first + t; lag < head_end; lag += kThreads) sum += lag_value(lag);
      for (index_t i = run + t; i < stop; i += kThreads) sum += totals[i];
      for (index_t lag = tail + t; lag < last; lag += kThreads) sum += lag_value(lag);
      partial[t] = sum;
    });
    sum_all(block, partial);
  }
};

template <class T>
struct CopySums {
  const double* from;
  index_t heads, rows;
  View<T, 3> to;
  CONVBASIS_DEVICE void operator()(index_t head, index_t row) const {
    to.data[head / heads * to.strides[0] + head % heads * to.strides[1] + row * to.strides[2]] =
        static_cast<T>(from[head * rows + row]);
  }
};

}  // namespace

template <class T>
void sum_rows(const Strips<T>& strips, double* sums, const Stream& stream) {
  const StripTable<T>& table = strips.table;
  const auto all = static_cast<index_t>(strips.layouts.size());
  const index_t runs = ceil_div(table.rows, kRun);
  const DeviceBuffer<double> totals(stream, all * table.most * runs);
  launch_blocks<kThreads>(stream, totals.size(), kThreads * sizeof(double),
                          RunTotals<T>{table, runs, totals.data()});
  using Kernel = SumTileOfRows<T>;
  launch_blocks<kThreads>(stream, all * runs, Kernel::kSharedBytes,
                          Kernel{table, totals.data(), runs, runs, sums});
}

template <class T>
void row_sums(const BasisView<T>& basis, View<T, 3> sums, const Stream& stream) {
  constexpr const char* kName = "row_sums";
  require_basis(kName, basis);
  const auto [batch, heads, most, n] = basis.kernels.shape;
  require_shape(kName, "sums", sums.shape, {batch, heads, n}, "to match the basis");
  if (sums.empty()) return;
  require_narrow(kName, batch * heads, most, n);
  const DeviceGuard guard(stream.device);
  const Strips<T> strips = strips_of_basis(basis, stream);
  const DeviceBuffer<double> exact(stream, sums.size());
  sum_rows(strips, exact.data(), stream);
  launch(stream, batch * heads, n, CopySums<T>{exact.data(), heads, n, sums});
}

#define CONVBASIS_INSTANTIATE(T)                                    \
  template void sum_rows(const Strips<T>&, double*, const Stream&); \
  template void row_sums(const BasisView<T>&, View<T, 3>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
