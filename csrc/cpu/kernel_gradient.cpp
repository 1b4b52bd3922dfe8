#include "cpu/kernel_gradient.h"

#include <algorithm>

#include "cpu/blas.h"
#include "cpu/correlate.h"

namespace convbasis {
namespace {

constexpr index_t kTile = 256, kMostSlices = 16;  // rows; a fixed number of partial sums

/// sums[t] = values[t] + ... + values[t + width - 1] as far as they go, without a subtraction: a
/// suffix of one run of `width` values and a prefix of the next. `prefix` is scratch of that size.
void window_sums(std::span<const double> values, index_t width, double* sums, double* prefix) {
  const index_t count = static_cast<index_t>(values.size());
  for (index_t run = 0; run < count; run += width) {
    const index_t stop = std::min(run + width, count);
    double up = 0, down = 0;
    for (index_t t = run; t < stop; ++t) prefix[t] = up += values[static_cast<std::size_t>(t)];
    for (index_t t = stop - 1; t >= run; --t) sums[t] = down += values[static_cast<std::size_t>(t)];
  }
  for (index_t t = 0; t < count; ++t) {
    const index_t last = std::min(t + width, count) - 1;
    if (t % width != 0 && last / width > t / width) sums[t] += prefix[last];
  }
}

}  // namespace

template <class T>
KernelGradient<T>::KernelGradient(const Half<T>& half, Rows<const T> value, Rows<const T> grad,
                                  std::span<const double> delta, const Unscale<T>& unscale,
                                  index_t channels, const Exec& exec, StageSeconds& seconds)
    : half_(half),
      exec_(exec),
      memory_(layout().count() * layout().rows),
      grads_{memory_.data(), layout().rows} {
  parallel_for(exec_, layout().count(),
               [&](index_t r, int) { std::fill_n(grads_.row(r), layout().rows, T(0)); });
  correlate_strips<T>(layout(), half.schedule, value, grad, channels, grads_, exec, seconds);
  StageTimer timer(seconds.normalize);
  finish(delta, unscale);
}

template <class T>
void KernelGradient<T>::finish(std::span<const double> delta, const Unscale<T>& unscale) {
  parallel_for(exec_, layout().count(), [&](index_t r, int) {
    const index_t begin = layout().begin(r), lags = layout().rows - begin;
    Buffer<double> sums(lags), prefix(lags);
    window_sums(delta.subspan(static_cast<std::size_t>(begin)), layout().end(r) - begin,
                sums.data(), prefix.data());
    const T* weights = half_.weights.matrix.kernels.row(r);
    T* grads = grads_.row(r);
    for (index_t t = 0; t < lags; ++t)
      grads[t] =
          weights[t] * (grads[t] - static_cast<T>(sums[t])) * unscale.shares * unscale.values;
  });
}

template <class T>
void KernelGradient<T>::add(index_t row, const T* logit_grads) {
  for (index_t r = 0; r < layout().count() && layout().begin(r) <= row; ++r) {
    T* grads = grads_.row(r);
    for (index_t j = layout().begin(r); j < std::min(layout().end(r), row + 1); ++j)
      grads[row - j] += logit_grads[j];
  }
}

template <class T>
void KernelGradient<T>::add_to(Rows<const T> query, Rows<const T> key, index_t head_dim,
                               Rows<T> grad_query, Rows<T> grad_key, StageSeconds& seconds) const {
  StageTimer timer(seconds.rows);
  const index_t first = first_strip(), count = layout().count() - first, rows = layout().rows;
  if (count == 0) return;
  Buffer<T> starts(count * head_dim);
  for (index_t r = 0; r < count; ++r)
    std::copy_n(key.row(layout().begin(first + r)), head_dim, starts.data() + r * head_dim);
  const index_t tiles = ceil_div(rows, kTile), slices = std::min(tiles, kMostSlices);
  Buffer<T> partial(slices * count * head_dim);
  parallel_for(exec_, slices, [&](index_t slice, int) {
    T* mine = partial.data() + slice * count * head_dim;
    std::fill_n(mine, count * head_dim, T(0));
    Buffer<T> band(count * kTile);  // of row i: du_r[i - s_r] of every strip r
    for (index_t tile = slice * tiles / slices; tile < (slice + 1) * tiles / slices; ++tile) {
      const index_t begin = tile * kTile, size = std::min(kTile, rows - begin);
      index_t seen = 0;  // strips that begin before the tile's end
      for (; seen < count && layout().begin(first + seen) < begin + size; ++seen) {
        const index_t start = layout().begin(first + seen);
        const index_t from = std::max(begin, start);
        T* to = band.data() + seen * kTile;
        std::fill_n(to, from - begin, T(0));
        std::copy_n(grads_.row(first + seen) + from - start, begin + size - from,
                    to + from - begin);
      }
      blas::add_transposed_product<T>(size, head_dim, seen, {band.data(), kTile},
                                      {starts.data(), head_dim},
                                      {grad_query.row(begin), grad_query.stride});
      blas::multiply<T>(seen, head_dim, size, T(1), {band.data(), kTile},
                        {query.row(begin), query.stride}, T(1), {mine, head_dim});
    }
  });
  for (index_t slice = 0; slice < slices; ++slice) {
    for (index_t r = 0; r < count; ++r) {
      const T* from = partial.data() + (slice * count + r) * head_dim;
      T* to = grad_key.row(layout().begin(first + r));
      for (index_t c = 0; c < head_dim; ++c) to[c] += from[c];
    }
  }
}

template class KernelGradient<float>;
template class KernelGradient<double>;

}  // namespace convbasis
