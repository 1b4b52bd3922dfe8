#include "core/buffer.h"
#include "cuda/exp.h"
#include "cuda/numeric.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256;
constexpr index_t kLags = 8192;  // of one thread block

bool has_uncovered_columns(const StripLayout& layout) {
  return layout.columns > 0 && (layout.count() == 0 || layout.begin(0) > 0);
}

/// The largest logit of some lags of one strip.
template <class T>
struct LargestOfLags {
  StripTable<T> logits;
  index_t parts;  // of a strip
  T* largest;     // (all heads, most, parts)
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    T* values = reinterpret_cast<T*>(block.shared);
    const index_t strip_index = block.index / parts;
    const int head = static_cast<int>(strip_index / logits.most);
    const int strip = static_cast<int>(strip_index % logits.most);
    const index_t first = block.index % parts * kLags, lags = logits.lags(head, strip);
    const index_t last = first + kLags < lags ? first + kLags : lags;
    const T* kernel = logits.kernel(head, strip);
    block.each(kThreads, [&](int t) {
      T top = -static_cast<T>(INFINITY);
      for (index_t lag = first + t; lag < last; lag += kThreads) top = larger_of(top, kernel[lag]);
      values[t] = top;
    });
    max_all(block, values);
    block.each(1, [&](int) { largest[block.index] = values[0]; });
  }
};

/// The largest of a head's strips, and 0 for columns that no strip covers.
template <class T>
struct LargestOfHead {
  const T* largest;
  index_t count;  // of a head
  const std::int32_t* uncovered;
  T* shifts;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    T* values = reinterpret_cast<T*>(block.shared);
    block.each(kThreads, [&](int t) {
      T top = uncovered[block.index] != 0 ? T(0) : -static_cast<T>(INFINITY);
      for (index_t i = t; i < count; i += kThreads)
        top = larger_of(top, largest[block.index * count + i]);
      values[t] = top;
    });
    max_all(block, values);
    block.each(1, [&](int) {
      shifts[block.index] = is_finite(static_cast<double>(values[0])) ? values[0] : T(0);
    });
  }
};

template <class T>
struct Exponentiate {
  StripTable<T> logits, weights;
  const std::int32_t* uncovered;
  const T* shifts;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t row, index_t lag) const {
    const int head = static_cast<int>(row / weights.most);
    const int strip = static_cast<int>(row % weights.most);
    if (lag >= weights.lags(head, strip)) return;
    const int source = strip - uncovered[head];
    const T logit = source < 0 ? T(0) : logits.kernel(head, source)[lag];
    to[row * weights.rows + lag] = exponential(logit - shifts[head]);
  }
};

}  // namespace

template <class T>
Weights<T> exponentiate(const Strips<T>& logits, const Stream& stream) {
  const auto all = static_cast<index_t>(logits.layouts.size());
  std::vector<StripLayout> layouts = logits.layouts;
  std::vector<std::int32_t> uncovered;
  for (StripLayout& layout : layouts) {
    uncovered.push_back(has_uncovered_columns(layout) ? 1 : 0);
    if (uncovered.back() != 0) layout.starts.insert(layout.starts.begin(), index_t{0});
  }
  const DeviceBuffer<std::int32_t> added = upload<std::int32_t>(stream, uncovered);

  Weights<T> weights{strips_of_layouts<T>(std::move(layouts), logits.table.heads, 0, stream),
                     DeviceBuffer<T>(stream, all)};
  StripTable<T>& table = weights.strips.table;
  table.strip_stride = table.rows;
  table.head_stride = table.most * table.rows;
  table.batch_stride = table.heads * table.head_stride;
  weights.strips.own_kernels = DeviceBuffer<T>(stream, all * table.head_stride);
  table.kernels = weights.strips.own_kernels.data();

  const index_t parts = ceil_div(logits.table.rows, kLags), of_head = logits.table.most * parts;
  const DeviceBuffer<T> largest(stream, all * of_head);
  launch_blocks<kThreads>(stream, all * of_head, kThreads * sizeof(T),
                          LargestOfLags<T>{logits.table, parts, largest.data()});
  launch_blocks<kThreads>(
      stream, all, kThreads * sizeof(T),
      LargestOfHead<T>{largest.data(), of_head, added.data(), weights.shifts.data()});
  launch(stream, all * table.most, table.rows,
         Exponentiate<T>{logits.table, table, added.data(), weights.shifts.data(),
                         weights.strips.own_kernels.data()});
  return weights;
}

template Weights<float> exponentiate(const Strips<float>&, const Stream&);
template Weights<double> exponentiate(const Strips<double>&, const Stream&);

}  // namespace convbasis::cuda
