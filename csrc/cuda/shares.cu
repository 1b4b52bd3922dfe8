#include <limits>

#include "core/buffer.h"
#include "cuda/numeric.h"
#include "cuda/rounding.h"
#include "cuda/shares.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 8, kRows = kThreads / kLanes;
constexpr index_t kMeanRows = 256;

/// The largest 1 / sum of a head's rows that are not spoiled.
struct LargestInverse {
  const double* sums;
  const std::int32_t* spoiled;
  index_t rows;
  double* largest;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    block.each(kThreads, [&](int t) {
      double top = 0;
      for (index_t i = t; i < rows; i += kThreads) {
        const index_t row = block.index * rows + i;
        if (spoiled[row] == 0 && sums[row] > 0) top = larger_of(top, 1 / sums[row]);
      }
      values[t] = top;
    });
    max_all(block, values);
    block.each(1, [&](int) { largest[block.index] = values[0]; });
  }
};

/// One thread a group of heads.
struct ChooseUnits {
  const double *grads, *values, *inverses;  // the largest ones, (all heads)
  index_t group;
  int room;  // an exponent that shares may have in products with values of about 1
  HeadUnits* units;

  [[nodiscard]] static CONVBASIS_DEVICE int exponent_of(double peak) {
    int exponent = 0;
    if (is_finite(peak)) frexp(peak, &exponent);
    return exponent;
  }
  CONVBASIS_DEVICE void operator()(index_t, index_t item) const {
    constexpr int kMostOfGrads = 100, kMost = 1000;
    int excess = 0;
    for (index_t head = item * group; head < (item + 1) * group; ++head) {
      const int over = exponent_of(inverses[head]) - room;
      excess = over > excess ? over : excess;
    }
    int of_values = excess + exponent_of(values[item * group]);
    of_values = of_values > kMost ? kMost : (of_values < -kMost ? -kMost : of_values);
    for (index_t head = item * group; head < (item + 1) * group; ++head) {
      int of_grads = exponent_of(grads[head]);
      of_grads = of_grads > kMostOfGrads ? kMostOfGrads : of_grads;
      of_grads = of_grads < -kMostOfGrads ? -kMostOfGrads : of_grads;
      units[head] = {ldexp(1.0, -of_grads), ldexp(1.0, -of_values)};
    }
  }
};

template <class T>
struct DivideRows {
  static constexpr std::size_t kSharedBytes = sizeof(double) * kThreads;
  static constexpr int kLeastBlocks = 4;
  Array<T> grad_output, output;
  const double* means;
  index_t group;
  const HeadUnits* units;
  const double* sums;  // 0 for what has no output: heads that are left out
  const std::int32_t* spoiled;
  index_t tiles;
  T* shares;
  double *delta, *delta_shares;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* dots = reinterpret_cast<double*>(block.shared);
    const index_t head = block.index / tiles, first = block.index % tiles * kRows;
    const index_t rows = output.rows, channels = output.channels;
    const double* mean = means + head / group * channels;
    const HeadUnits unit = units[head];
    const auto inverse = [&](index_t row) {
      const index_t at = head * rows + row;
      return spoiled[at] == 0 && sums[at] > 0 ? 1 / sums[at] : 0.0;
    };
    block.each(kThreads, [&](int t) {
      const index_t row = first + t / kLanes;
      double dot = 0;
      for (index_t c = t % kLanes; row < rows && c < channels; c += kLanes) {
        const double grad = static_cast<double>(grad_output.load(head, row, c)) * unit.grad;
        dot += grad * (static_cast<double>(output.load(head, row, c)) - mean[c]);
        const double factor = inverse(row);
        shares[(head * rows + row) * channels + c] =
            factor > 0 ? static_cast<T>(grad * factor) : T(0);
      }
      dots[t] = dot;
    });
    block.each(kRows, [&](int r) {
      if (first + r >= rows) return;
      double dot = 0;
      for (int lane = 0; lane < kLanes; ++lane) dot += dots[r * kLanes + lane];
      delta[head * rows + first + r] = dot;
      const double factor = inverse(first + r);
      delta_shares[head * rows + first + r] = factor > 0 ? dot * unit.value * factor : 0.0;
    });
  }
};

/// Sums of kMeanRows rows, then of those: the first of two steps.
template <class T>
struct SumSlices {
  Array<T> x;  // as query heads see it
  index_t slices;
  double* sums;  // (all key heads, slices, channels)
  CONVBASIS_DEVICE void operator()(index_t item, index_t c) const {
    const index_t head = item / slices * x.group, first = item % slices * kMeanRows;
    const index_t last = first + kMeanRows < x.rows ? first + kMeanRows : x.rows;
    double sum = 0;
    for (index_t row = first; row < last; ++row) sum += static_cast<double>(x.load(head, row, c));
    sums[item * x.channels + c] = sum;
  }
};

struct MeanOfSlices {
  const double* sums;
  index_t slices, rows, channels;
  double* means;
  CONVBASIS_DEVICE void operator()(index_t head, index_t c) const {
    double sum = 0;
    for (index_t slice = head * slices; slice < (head + 1) * slices; ++slice)
      sum += sums[slice * channels + c];
    means[head * channels + c] = rows > 0 ? sum / static_cast<double>(rows) : 0.0;
  }
};

template <class T>
struct SubtractMeans {
  Array<T> x;  // as query heads see it
  const double* means;
  const HeadUnits* units;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t key_head, index_t item) const {
    const auto [row, c] = position_of(item, x.channels);
    const index_t head = key_head * x.group;
    const double number =
        static_cast<double>(x.load(head, row, c)) - means[key_head * x.channels + c];
    to[key_head * x.rows * x.channels + item] =
        static_cast<T>(units != nullptr ? number * units[head].value : number);
  }
};

}  // namespace

template <class T>
DeviceBuffer<double> means_of_rows(const Array<T>& x, index_t key_heads, const Stream& stream) {
  const index_t slices = ceil_div(x.rows, kMeanRows);
  DeviceBuffer<double> means(stream, key_heads * x.channels);
  const DeviceBuffer<double> sums(stream, slices * means.size());
  launch(stream, key_heads * slices, x.channels, SumSlices<T>{x, slices, sums.data()});
  launch(stream, key_heads, x.channels,
         MeanOfSlices{sums.data(), slices, x.rows, x.channels, means.data()});
  return means;
}

template <class T>
void subtract_means(const Array<T>& x, index_t key_heads, const double* means,
                    const HeadUnits* units, T* to, const Stream& stream) {
  launch(stream, key_heads, x.rows * x.channels, SubtractMeans<T>{x, means, units, to});
}

template <class T>
Shares<T> divide_by_sums(const HeadsForward<T>& forward, const Array<T>& value,
                         const Array<T>& grad_output, const Array<T>& output,
                         const Stream& stream) {
  const index_t all = forward.peaks.size(), rows = output.rows, channels = output.channels;
  const index_t key_heads = all / value.group;
  Shares<T> shares{
      DeviceBuffer<HeadUnits>(stream, all), DeviceBuffer<T>(stream, all * rows * channels),
      DeviceBuffer<T>(stream, key_heads * value.rows * channels),
      DeviceBuffer<double>(stream, all * rows), DeviceBuffer<double>(stream, all * rows)};
  {
    // Squares of the rows are measured too, into memory that is not in use yet.
    const DeviceBuffer<double> grads(stream, all), inverses(stream, all);
    measure_rows(grad_output, all, shares.delta.data(), grads.data(), stream);
    launch_blocks<kThreads>(
        stream, all, sizeof(double) * kThreads,
        LargestInverse{forward.sums.data(), forward.spoiled.data(), rows, inverses.data()});
    launch(stream, 1, all / value.group,
           ChooseUnits{grads.data(), forward.peaks.data(), inverses.data(), value.group,
                       std::numeric_limits<T>::max_exponent / 3, shares.units.data()});
  }
  const DeviceBuffer<double> means = means_of_rows(value, key_heads, stream);
  const index_t tiles = ceil_div(rows, kRows);
  using Kernel = DivideRows<T>;
  launch_blocks<kThreads>(
      stream, all * tiles, Kernel::kSharedBytes,
      Kernel{grad_output, output, means.data(), value.group, shares.units.data(),
             forward.sums.data(), forward.spoiled.data(), tiles, shares.shares.data(),
             shares.delta.data(), shares.delta_shares.data()});
  subtract_means(value, key_heads, means.data(), shares.units.data(), shares.value.data(), stream);
  return shares;
}

#define CONVBASIS_INSTANTIATE(T)                                                              \
  template Shares<T> divide_by_sums(const HeadsForward<T>&, const Array<T>&, const Array<T>&, \
                                    const Array<T>&, const Stream&);                          \
  template DeviceBuffer<double> means_of_rows(const Array<T>&, index_t, const Stream&);       \
  template void subtract_means(const Array<T>&, index_t, const double*, const HeadUnits*, T*, \
                               const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
