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
  index_t parts, of_head;  // parts of a strip; of a head, in all triangles
  int first_lag;
  T* largest;  // (all heads, of_head), where the parts of this triangle begin
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
      for (index_t lag = first + t; lag < last; lag += kThreads)
        if (lag >= first_lag) top = larger_of(top, kernel[lag]);
      values[t] = top;
    });
    max_all(block, values);
    const index_t place = strip * parts + block.index % parts;
    block.each(1, [&](int) { largest[head * of_head + place] = values[0]; });
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
  int first_lag;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t row, index_t lag) const {
    const int head = static_cast<int>(row / weights.most);
    const int strip = static_cast<int>(row % weights.most);
    if (lag >= weights.lags(head, strip)) return;
    const int source = strip - uncovered[head];
    const T logit = source < 0 ? T(0) : logits.kernel(head, source)[lag];
    to[row * weights.rows + lag] = lag < first_lag ? T(0) : exponential(logit - shifts[head]);
  }
};

}  // namespace

template <class T>
Weights<T> exponentiate(const Triangles<T>& logits, const Stream& stream) {
  const auto all = static_cast<index_t>(logits.front().layouts.size());
  const index_t parts = ceil_div(logits.front().table.rows, kLags);
  index_t of_head = 0;
  for (const Strips<T>& triangle : logits) of_head += triangle.table.most * parts;
  Weights<T> weights{{}, DeviceBuffer<T>(stream, all)};
  const DeviceBuffer<T> largest(stream, all * of_head);
  std::vector<DeviceBuffer<std::int32_t>> added;
  std::vector<std::int32_t> any_uncovered(static_cast<std::size_t>(all));
  index_t before = 0;
  for (const Strips<T>& triangle : logits) {
    launch_blocks<kThreads>(
        stream, all * triangle.table.most * parts, kThreads * sizeof(T),
        LargestOfLags<T>{triangle.table, parts, of_head, first_lag(weights.triangles.size()),
                         largest.data() + before});
    before += triangle.table.most * parts;
    std::vector<StripLayout> layouts = triangle.layouts;
    std::vector<std::int32_t> uncovered;
    for (StripLayout& layout : layouts) {
      uncovered.push_back(has_uncovered_columns(layout) ? 1 : 0);
      any_uncovered[uncovered.size() - 1] |= uncovered.back();
      if (uncovered.back() != 0) layout.starts.insert(layout.starts.begin(), index_t{0});
    }
    added.push_back(upload<std::int32_t>(stream, uncovered));
    weights.triangles.push_back(
        strips_of_layouts<T>(std::move(layouts), triangle.table.heads, 0, stream));
  }
  const DeviceBuffer<std::int32_t> any = upload<std::int32_t>(stream, any_uncovered);
  launch_blocks<kThreads>(
      stream, all, kThreads * sizeof(T),
      LargestOfHead<T>{largest.data(), of_head, any.data(), weights.shifts.data()});

  for (std::size_t i = 0; i < logits.size(); ++i) {
    Strips<T>& triangle = weights.triangles[i];
    StripTable<T>& table = triangle.table;
    table.strip_stride = table.rows;
    table.head_stride = table.most * table.rows;
    table.batch_stride = table.heads * table.head_stride;
    triangle.own_kernels = DeviceBuffer<T>(stream, all * table.head_stride);
    table.kernels = triangle.own_kernels.data();
    launch(stream, all * table.most, table.rows,
           Exponentiate<T>{logits[i].table, table, added[i].data(), weights.shifts.data(),
                           first_lag(i), triangle.own_kernels.data()});
  }
  return weights;
}

template Weights<float> exponentiate(const Triangles<float>&, const Stream&);
template Weights<double> exponentiate(const Triangles<double>&, const Stream&);

}  // namespace convbasis::cuda
