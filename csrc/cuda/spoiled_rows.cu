#include "core/buffer.h"
#include "cuda/numeric.h"
#include "cuda/spoiled_rows.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 128, kRows = 32;

/// A thread block looks at kRows rows and sums those that are flagged, which are few.
template <class T>
struct AttendSpoiled {
  static constexpr std::size_t kSharedBytes = sizeof(double) * 2 * kThreads;
  StripTable<T> logits;
  Array<T> value;
  const std::int32_t* spoiled;
  Array<T> out, lse;
  double* exact_lse;
  index_t tiles;

  [[nodiscard]] CONVBASIS_DEVICE double logit(int head, index_t row, index_t column) const {
    const int strip = logits.strip_of(head, column);
    return strip < 0 ? 0.0 : static_cast<double>(logits.kernel(head, strip)[row - column]);
  }

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    const int head = static_cast<int>(block.index / tiles);
    const index_t first = block.index % tiles * kRows;
    for (index_t row = first; row < first + kRows && row < logits.rows; ++row)
      if (spoiled[head * logits.rows + row] != 0) attend(block, head, row);
  }

  CONVBASIS_DEVICE void attend(Block<kThreads>& block, int head, index_t row) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    double* weights = values + kThreads;
    const index_t keys = row + 1 < logits.columns ? row + 1 : logits.columns;
    block.each(kThreads, [&](int t) {
      double top = -INFINITY;
      for (index_t j = t; j < keys; j += kThreads) top = larger_of(top, logit(head, row, j));
      values[t] = top;
    });
    max_all(block, values);
    PerThread<double, kThreads> top;
    block.each(kThreads, [&](int t) { top[t] = values[0]; });
    block.each(kThreads, [&](int t) {
      double sum = 0;
      for (index_t j = t; j < keys; j += kThreads) sum += exp(logit(head, row, j) - top[t]);
      values[t] = sum;
    });
    sum_all(block, values);
    block.each(1, [&](int t) {
      const double log_sum = log(values[0]) + top[t];
      if (lse.data != nullptr) lse.store(head, row, 0, static_cast<T>(log_sum));
      if (exact_lse != nullptr) exact_lse[head * logits.rows + row] = log_sum;
    });
    for (index_t channel = 0; channel < out.channels; channel += kThreads)
      sum_channels(block, head, row, keys, channel, values, weights, top);
  }

  /// Weights are divided before they meet values, so that no sum is larger than a value.
  CONVBASIS_DEVICE void sum_channels(Block<kThreads>& block, int head, index_t row, index_t keys,
                                     index_t channel, const double* sum, double* weights,
                                     PerThread<double, kThreads>& top) const {
    PerThread<double, kThreads> mean;
    block.each(kThreads, [&](int t) { mean[t] = 0; });
    for (index_t first = 0; first < keys; first += kThreads) {
      block.each(kThreads, [&](int t) {
        const index_t j = first + t;
        weights[t] = j < keys ? exp(logit(head, row, j) - top[t]) / sum[0] : 0.0;
      });
      block.each(kThreads, [&](int t) {
        const index_t count = keys - first < kThreads ? keys - first : kThreads;
        if (channel + t >= out.channels) return;
        for (index_t j = 0; j < count; ++j)
          mean[t] += weights[j] * static_cast<double>(value.load(head, first + j, channel + t));
      });
    }
    block.each(kThreads, [&](int t) {
      if (channel + t < out.channels) out.store(head, row, channel + t, static_cast<T>(mean[t]));
    });
  }
};

}  // namespace

template <class T>
void attend_spoiled(const Strips<T>& logits, const Array<T>& value, const std::int32_t* spoiled,
                    const Array<T>& out, const Array<T>& lse, double* exact_lse,
                    const Stream& stream) {
  const index_t tiles = ceil_div(logits.table.rows, kRows);
  using Kernel = AttendSpoiled<T>;
  launch_blocks<kThreads>(stream, static_cast<index_t>(logits.layouts.size()) * tiles,
                          Kernel::kSharedBytes,
                          Kernel{logits.table, value, spoiled, out, lse, exact_lse, tiles});
}

template void attend_spoiled(const Strips<float>&, const Array<float>&, const std::int32_t*,
                             const Array<float>&, const Array<float>&, double*, const Stream&);
template void attend_spoiled(const Strips<double>&, const Array<double>&, const std::int32_t*,
                             const Array<double>&, const Array<double>&, double*, const Stream&);

}  // namespace convbasis::cuda
