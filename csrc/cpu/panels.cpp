#include "cpu/panels.h"

#include <algorithm>

#include "cpu/blas.h"
#include "cpu/tiles.h"

namespace convbasis {

template <class T>
index_t panel_rows(index_t channels) {
  constexpr index_t kLargest = 1'000'000, kMost = 64, kFewest = 16, kWide = 64 / sizeof(T);
  if (kernels<T>().lanes < kWide) return kQueryTile;
  const index_t fitting = kLargest / (kPanel * std::max<index_t>(channels, 1));
  return std::clamp<index_t>(fitting / kFewest * kFewest, kFewest, kMost);
}

template <class T>
Panels<T>::Panels(Rows<const T> matrix, index_t rows, index_t channels, const Exec& exec)
    : channels_(channels), numbers_(round_up(rows, kPanel) * channels) {
  parallel_for(exec, ceil_div(rows, kPanel), [&](index_t panel, int) {
    T* to = numbers_.data() + panel * kPanel * channels;
    const index_t first = panel * kPanel, count = std::min(kPanel, rows - first);
    for (index_t j = 0; j < count; ++j)
      for (index_t c = 0; c < channels; ++c) to[c * kPanel + j] = matrix.row(first + j)[c];
  });
}

template <class T>
void Panels<T>::multiply(Rows<const T> left, index_t count, index_t first, index_t last, T* to,
                         index_t stride) const {
  for (index_t j = first, next = 0; j < last; j = next) {
    next = std::min((j / kPanel + 1) * kPanel, last);
    const T* panel = numbers_.data() + j / kPanel * kPanel * channels_ + j % kPanel;
    blas::multiply<T>(count, next - j, channels_, T(1), {left.data, left.stride}, {panel, kPanel},
                      T(0), {to + j - first, stride});
  }
}

template index_t panel_rows<float>(index_t);
template index_t panel_rows<double>(index_t);
template class Panels<float>;
template class Panels<double>;

}  // namespace convbasis
