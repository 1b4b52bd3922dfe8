#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "convbasis/attention.h"
#include "core/shape.h"
#include "core/thread_pool.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

constexpr index_t kRowsPerTask = 1024;

/// task(batch, head, first, last, item) for the rows of all heads, some at a time.
template <class T, class Task>
void for_each_rows(const View<const T, 4>& array, const Exec& exec, const Task& task) {
  const auto [batch, heads, n, channels] = array.shape;
  const index_t per_head = ceil_div(n, kRowsPerTask);
  parallel_for(exec, batch * heads * per_head, [&](index_t item, int) {
    const index_t flat = item / per_head, first = item % per_head * kRowsPerTask;
    task(flat / heads, flat % heads, first, std::min(first + kRowsPerTask, n), item);
  });
}

}  // namespace

template <class T>
bool all_finite(View<const T, 4> array, const Exec& exec) {
  if (array.empty()) return true;
  const auto [batch, heads, n, channels] = array.shape;
  std::vector<char> finite(static_cast<std::size_t>(batch * heads * ceil_div(n, kRowsPerTask)), 1);
  for_each_rows(array, exec, [&](index_t b, index_t h, index_t first, index_t last, index_t item) {
    const View<const T, 2> head = head_view(array, b, h);
    bool good = true;
    if (head.strides[1] == 1 && head.strides[0] == channels) {
      good = kernels<T>().all_finite(&head(first, 0), (last - first) * channels);
    } else {
      for (index_t i = first; i < last; ++i)
        for (index_t c = 0; c < channels; ++c) good = good && std::isfinite(head(i, c));
    }
    finite[static_cast<std::size_t>(item)] = good ? 1 : 0;
  });
  return std::find(finite.begin(), finite.end(), 0) == finite.end();
}

template <class T>
void row_norms(View<const T, 4> array, View<double, 3> norms, const Exec& exec) {
  const auto [batch, heads, n, channels] = array.shape;
  require_shape("row_norms", "norms", norms.shape, {batch, heads, n}, "to match array");
  for_each_rows(array, exec, [&](index_t b, index_t h, index_t first, index_t last, index_t) {
    const View<const T, 2> head = head_view(array, b, h);
    Buffer<T> packed(channels);
    for (index_t i = first; i < last; ++i) {
      const T* row = head.data + i * head.strides[0];
      if (head.strides[1] != 1) {
        pack_rows(head, i, i + 1, channels, packed.data());
        row = packed.data();
      }
      norms(b, h, i) =
          std::min(kernels<T>().norm(row, channels), std::numeric_limits<double>::max());
    }
  });
}

#define CONVBASIS_INSTANTIATE(T)                           \
  template bool all_finite(View<const T, 4>, const Exec&); \
  template void row_norms(View<const T, 4>, View<double, 3>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
