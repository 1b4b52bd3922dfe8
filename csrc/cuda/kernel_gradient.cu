#include "core/buffer.h"
#include "cuda/correlate.h"
#include "cuda/kernel_gradient.h"
#include "cuda/window_sums.h"

namespace convbasis::cuda {
namespace {

/// One sequence of numbers a head.
struct HeadRows {
  const double* data;
  index_t rows;
  [[nodiscard]] CONVBASIS_DEVICE Numbers<double> of(index_t head) const {
    return {data + head * rows, rows};
  }
};

/// A thread block has kRun lags of one strip.
template <class T>
struct FinishKernels {
  StripTable<T> logits, weights;
  HeadRows delta_shares;
  const double* totals;
  index_t runs;
  T* grads;
  CONVBASIS_DEVICE void operator()(Block<kWindowThreads> block) const {
    const index_t strip_index = block.index / runs;
    const int head = static_cast<int>(strip_index / logits.most);
    const int strip = static_cast<int>(strip_index % logits.most);
    const index_t first = block.index % runs * kRun, lags = logits.lags(head, strip);
    if (first >= lags) return;
    const index_t begin = logits.begin(head, strip), end = logits.end(head, strip);
    WindowSums windows(block);
    windows.add(block, delta_shares.of(head), totals + head * runs, begin + first, end - begin);
    // Weights may begin with a strip that has no logits.
    const int added = weights.counts[head] - logits.counts[head];
    const T* weight = weights.kernel(head, strip + added);
    T* to = grads + strip_index * logits.rows;
    windows.each(block, [&](int i, double sum) {
      const index_t lag = first + i;
      if (lag < lags) to[lag] = weight[lag] * (to[lag] - static_cast<T>(sum));
    });
  }
};

}  // namespace

template <class T>
DeviceBuffer<T> differentiate_kernels(const Strips<T>& logits, const Strips<T>& weights,
                                      const Schedule& schedule, const double* delta_shares,
                                      const Array<T>& value, const Array<T>& shares,
                                      index_t workspace, const Stream& stream) {
  const StripTable<T>& table = logits.table;
  const auto all = static_cast<index_t>(logits.layouts.size());
  DeviceBuffer<T> grads(stream, all * table.most * table.rows);
  correlate_strips(logits, schedule, value, shares, grads.data(), workspace, stream);
  const index_t runs = ceil_div(table.rows, kRun);
  const HeadRows deltas{delta_shares, table.rows};
  const DeviceBuffer<double> totals(stream, all * runs);
  using Totals = RunTotals<HeadRows>;
  launch_blocks<kWindowThreads>(stream, all * runs, Totals::kSharedBytes,
                                Totals{deltas, runs, totals.data()});
  launch_blocks<kWindowThreads>(
      stream, all * table.most * runs, WindowSums::kSharedBytes,
      FinishKernels<T>{table, weights.table, deltas, totals.data(), runs, grads.data()});
  return grads;
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template DeviceBuffer<T> differentiate_kernels(const Strips<T>&, const Strips<T>&,              \
                                                 const Schedule&, const double*, const Array<T>&, \
                                                 const Array<T>&, index_t, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
