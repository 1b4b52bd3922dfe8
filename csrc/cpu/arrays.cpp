#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "convbasis/attention.h"
#include "core/shape.h"
#include "core/thread_pool.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

constexpr index_t kRowsPerTask = 1024;

/// Rows [first, last) of one head.
template <class T>
struct HeadRows {
  View<const T, 2> head;
  index_t batch, index, first, last;
};

template <class T>
index_t count_tasks(const View<const T, 4>& array) {
  const auto [batch, heads, n, channels] = array.shape;
  return batch * heads * ceil_div(n, kRowsPerTask);
}

template <class T>
HeadRows<T> rows_of_task(const View<const T, 4>& array, index_t task) {
  const auto [batch, heads, n, channels] = array.shape;
  const index_t per_head = ceil_div(n, kRowsPerTask), flat = task / per_head;
  const index_t first = task % per_head * kRowsPerTask;
  return {head_view(array, flat / heads, flat % heads), flat / heads, flat % heads, first,
          std::min(first + kRowsPerTask, n)};
}

template <class T>
bool is_finite(const HeadRows<T>& rows) {
  const View<const T, 2>& head = rows.head;
  const index_t channels = head.shape[1];
  if (channels == 0) return true;
  if (head.strides[1] == 1 && head.strides[0] == channels)
    return kernels<T>().all_finite(&head(rows.first, 0), (rows.last - rows.first) * channels);
  bool good = true;
  for (index_t i = rows.first; i < rows.last; ++i) {
    if (head.strides[1] == 1) {
      good = good && kernels<T>().all_finite(&head(i, 0), channels);
    } else {
      for (index_t c = 0; c < channels; ++c) good = good && std::isfinite(head(i, c));
    }
  }
  return good;
}

}  // namespace

template <class T>
index_t first_not_finite(std::span<const View<const T, 4>> arrays, const Exec& exec) {
  std::vector<index_t> ends;  // of each array's tasks
  for (const auto& array : arrays)
    ends.push_back((ends.empty() ? 0 : ends.back()) + count_tasks(array));
  const auto count = static_cast<index_t>(arrays.size());
  std::atomic<index_t> found{count};
  parallel_for(exec, ends.empty() ? 0 : ends.back(), [&](index_t task, int) {
    const index_t i = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
    if (i >= found.load(std::memory_order_relaxed)) return;
    const auto at = static_cast<std::size_t>(i);
    if (is_finite(rows_of_task(arrays[at], task - (i > 0 ? ends[at - 1] : 0)))) return;
    index_t before = found.load();
    while (i < before && !found.compare_exchange_weak(before, i)) {
    }
  });
  return found;
}

template <class T>
bool all_finite(View<const T, 4> array, const Exec& exec) {
  return first_not_finite(std::span<const View<const T, 4>>(&array, 1), exec) == 1;
}

template <class T>
void row_norms(View<const T, 4> array, View<double, 3> norms, const Exec& exec) {
  const auto [batch, heads, n, channels] = array.shape;
  require_shape("row_norms", "norms", norms.shape, {batch, heads, n}, "to match array");
  parallel_for(exec, count_tasks(array), [&](index_t task, int) {
    const HeadRows<T> rows = rows_of_task(array, task);
    Buffer<T> packed(channels);
    for (index_t i = rows.first; i < rows.last; ++i) {
      const T* row = rows.head.data + i * rows.head.strides[0];
      if (rows.head.strides[1] != 1) {
        pack_rows(rows.head, i, i + 1, channels, packed.data());
        row = packed.data();
      }
      norms(rows.batch, rows.index, i) =
          std::min(kernels<T>().norm(row, channels), std::numeric_limits<double>::max());
    }
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                     \
  template index_t first_not_finite(std::span<const View<const T, 4>>, const Exec&); \
  template bool all_finite(View<const T, 4>, const Exec&);                           \
  template void row_norms(View<const T, 4>, View<double, 3>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
