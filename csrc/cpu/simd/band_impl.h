// Included by kernels_impl.h: dot products and sizes of rows of channels, `lanes` of them at a
// time, the comparison of the columns they make, and rows of strips, which hold columns backwards.

#include <utility>

namespace convbasis {
namespace {

struct Plus {
  template <class V>
  [[gnu::always_inline]] V operator()(const V& a, const V& b) const {
    return a + b;
  }
};
struct Larger {
  template <class V>
  [[gnu::always_inline]] V operator()(const V& a, const V& b) const {
    return xsimd::max(a, b);
  }
};

/// a and b hold groups of W partial results; the result holds all those groups, each folded in two.
template <class T, class Join, index_t W, std::size_t... P>
[[gnu::always_inline]] inline Vec<T> fold(const Vec<T>& a, const Vec<T>& b,
                                          std::index_sequence<P...>) {
  using Register = typename Vec<T>::register_type;
  const Register x = a, y = b;
  constexpr auto from = [](index_t p) { return p / (W / 2) * W + p % (W / 2); };
  return Join()(Vec<T>(__builtin_shufflevector(x, y, from(static_cast<index_t>(P))...)),
                Vec<T>(__builtin_shufflevector(x, y, (from(static_cast<index_t>(P)) + W / 2)...)));
}

/// Lane l of the result is all of v[l], joined in the same order for every l.
template <class T, class Join, index_t Count = kLanes<T>>
[[gnu::always_inline]] inline Vec<T> join_each(const Vec<T>* v) {
  if constexpr (Count == 1) {
    return v[0];
  } else {
    return fold<T, Join, 2 * kLanes<T> / Count>(
        join_each<T, Join, Count / 2>(v), join_each<T, Join, Count / 2>(v + Count / 2),
        std::make_index_sequence<static_cast<std::size_t>(kLanes<T>)>());
  }
}

/// Lane l of the result is the sum of v[l].
template <class T>
[[gnu::always_inline]] inline Vec<T> sum_each(const Vec<T>* v) {
  return join_each<T, Plus>(v);
}

template <class T>
void measure_rows(Rows<const T> x, index_t count, index_t channels, T* peaks, double* norms) {
  constexpr index_t lanes = kLanes<T>;
  for (index_t i = 0; i < count; i += lanes) {
    const index_t some = count - i < lanes ? count - i : lanes;
    Vec<T> largest[lanes], squares[lanes];
    for (index_t l = 0; l < lanes; ++l) {
      largest[l] = squares[l] = Vec<T>(T(0));
      if (l >= some) continue;
      const T* row = x.row(i + l);
      for (index_t c = 0; c < channels; c += lanes) {
        const Vec<T> v = load_upto(row + c, channels - c < lanes ? channels - c : lanes);
        largest[l] = xsimd::max(largest[l], xsimd::abs(v));
        squares[l] = xsimd::fma(v, v, squares[l]);
      }
    }
    alignas(64) T of_lane[lanes];
    join_each<T, Larger>(largest).store_aligned(of_lane);
    for (index_t l = 0; l < some; ++l) peaks[i + l] = of_lane[l];
    sum_each<T>(squares).store_aligned(of_lane);
    for (index_t l = 0; l < some; ++l)
      norms[i + l] = norm_of_squares(static_cast<double>(of_lane[l]), x.row(i + l), channels);
  }
}

/// Dot products of y with the first `lanes` rows of x.
template <class T>
Vec<T> dots_of_rows(Rows<const T> x, const T* y, index_t channels) {
  Vec<T> sums[kLanes<T>];
  for (Vec<T>& sum : sums) sum = Vec<T>(T(0));
  for (index_t c = 0; c < channels; c += kLanes<T>) {
    const Vec<T> other = load(y + c);
    for (index_t l = 0; l < kLanes<T>; ++l)
      sums[l] = xsimd::fma(load(x.row(l) + c), other, sums[l]);
  }
  return sum_each<T>(sums);
}

/// The same of fewer rows.
template <class T>
Vec<T> dots_of_some(Rows<const T> x, index_t count, const T* y, index_t channels) {
  Vec<T> sums[kLanes<T>];
  for (index_t l = 0; l < kLanes<T>; ++l) {
    sums[l] = Vec<T>(T(0));
    if (l >= count) continue;
    for (index_t c = 0; c < channels; c += kLanes<T>)
      sums[l] = xsimd::fma(load(x.row(l) + c), load(y + c), sums[l]);
  }
  return sum_each<T>(sums);
}

template <class T>
void dots(Rows<const T> x, index_t count, const T* y, index_t channels, T factor, T* out) {
  const Vec<T> f(factor);
  index_t t = 0;
  for (; t + kLanes<T> <= count; t += kLanes<T>)
    store(out + t, dots_of_rows<T>({x.row(t), x.stride}, y, channels) * f);
  if (t < count)
    store_partial(out + t, dots_of_some<T>({x.row(t), x.stride}, count - t, y, channels) * f,
                  count - t);
}

template <class T>
void band_dots(Rows<const T> x, Rows<const T> y, index_t columns, index_t window, index_t channels,
               T factor, Rows<T> heads) {
  for (index_t j = 0; j < columns; ++j)
    dots<T>({x.row(j), x.stride}, window, y.row(j), channels, factor, heads.row(j));
}

template <class T>
index_t first_apart(const T* heads, index_t columns, index_t window, const T* head,
                    double threshold) {
  constexpr index_t lanes = kLanes<T>;
  for (index_t j = 0; j < columns; j += lanes) {
    const index_t count = columns - j < lanes ? columns - j : lanes;
    Vec<T> sums[lanes];
    for (index_t l = 0; l < lanes; ++l) {
      sums[l] = Vec<T>(T(0));
      if (l >= count) continue;
      const T* column = heads + (j + l) * window;
      for (index_t t = 0; t < window; t += lanes) {
        const index_t left = window - t < lanes ? window - t : lanes;
        sums[l] += xsimd::abs(load_upto(column + t, left) - load_upto(head + t, left));
      }
    }
    alignas(64) T distances[lanes];
    sum_each<T>(sums).store_aligned(distances);
    for (index_t l = 0; l < count; ++l)
      if (static_cast<double>(distances[l]) >= threshold) return j + l;
  }
  return columns;
}

template <class T, std::size_t... P>
Vec<T> reversed(const Vec<T>& v, std::index_sequence<P...>) {
  const typename Vec<T>::register_type x = v;
  return Vec<T>(__builtin_shufflevector(x, x, (kLanes<T> - 1 - static_cast<index_t>(P))...));
}

template <class T>
void copy_reversed(const T* x, T* y, index_t n) {
  index_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>)
    store(y + i, reversed<T>(load(x + n - kLanes<T> - i),
                             std::make_index_sequence<static_cast<std::size_t>(kLanes<T>)>()));
  for (; i < n; ++i) y[i] = x[n - 1 - i];
}

}  // namespace
}  // namespace convbasis
