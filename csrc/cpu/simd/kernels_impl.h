// Included by one kernels_<build>.cpp for each instruction set, which defines CONVBASIS_SIMD_BUILD,
// CONVBASIS_SIMD_ARCH (an xsimd architecture) and CONVBASIS_SIMD_REGISTERS. All that is here has
// internal linkage or is a template of that architecture, so builds cannot be mixed up at link
// time.

#include <cmath>
#include <limits>
#include <xsimd/xsimd.hpp>

#include "cpu/simd/fft_impl.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/lowrank_impl.h"
#include "cpu/simd/product_impl.h"
#include "cpu/simd/toeplitz_impl.h"

namespace convbasis {
namespace {

using Arch = CONVBASIS_SIMD_ARCH;
template <class T>
using Vec = xsimd::batch<T, Arch>;
template <class T>
constexpr index_t kLanes = static_cast<index_t>(Vec<T>::size);

template <class T>
Vec<T> load(const T* p) {
  return Vec<T>::load_unaligned(p);
}
template <class T>
void store(T* p, const Vec<T>& v) {
  v.store_unaligned(p);
}
/// The first `count` lanes from memory, the others `fill`.
template <class T>
Vec<T> load_partial(const T* p, index_t count, T fill) {
  alignas(64) T lanes[kLanes<T>];
  for (index_t i = 0; i < kLanes<T>; ++i) lanes[i] = i < count ? p[i] : fill;
  return Vec<T>::load_aligned(lanes);
}
template <class T>
void store_partial(T* p, const Vec<T>& v, index_t count) {
  alignas(64) T lanes[kLanes<T>];
  v.store_aligned(lanes);
  for (index_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// --- vectors -----------------------------------------------------------------------------------

template <class T>
void exp_shifted(const T* x, T shift, T* y, index_t n) {
  const Vec<T> s(shift);
  index_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(y + i, xsimd::exp(load(x + i) - s));
  if (i < n) store_partial(y + i, xsimd::exp(load_partial(x + i, n - i, shift) - s), n - i);
}

template <class T>
double exp_sum(T* x, T shift, index_t n) {
  const Vec<T> s(shift);
  Vec<T> sum(T(0)), more(T(0));
  index_t i = 0;
  for (; i + 2 * kLanes<T> <= n; i += 2 * kLanes<T>) {
    const Vec<T> a = xsimd::exp(load(x + i) - s), b = xsimd::exp(load(x + i + kLanes<T>) - s);
    store(x + i, a);
    store(x + i + kLanes<T>, b);
    sum += a;
    more += b;
  }
  double rest = 0;
  for (; i < n; i += kLanes<T>) {
    const index_t count = n - i < kLanes<T> ? n - i : kLanes<T>;
    store_partial(x + i, xsimd::exp(load_partial(x + i, count, shift) - s), count);
    for (index_t l = 0; l < count; ++l) rest += static_cast<double>(x[i + l]);
  }
  return rest + static_cast<double>(xsimd::reduce_add(sum + more));
}

template <class T>
void hide(T* x, const std::uint64_t* words, index_t at, T other, index_t n) {
  constexpr std::uint64_t kAll = (std::uint64_t{1} << kLanes<T>)-1;
  const Vec<T> hidden(other);
  for (index_t i = 0; i < n;) {
    const index_t bit = (at + i) % 64;
    const std::uint64_t seen = words[(at + i) / 64] >> bit;
    if (bit + kLanes<T> <= 64 && i + kLanes<T> <= n) {
      const auto kept = xsimd::batch_bool<T, Arch>::from_mask(seen & kAll);
      store(x + i, xsimd::select(kept, load(x + i), hidden));
      i += kLanes<T>;
    } else {
      if ((seen & 1) == 0) x[i] = other;
      ++i;
    }
  }
}

template <class T>
T max_value(const T* x, index_t n) {
  if (n < kLanes<T>) return xsimd::reduce_max(load_partial(x, n, x[0]));
  Vec<T> best = load(x + n - kLanes<T>);
  for (index_t i = 0; i + kLanes<T> <= n; i += kLanes<T>) best = xsimd::max(best, load(x + i));
  return xsimd::reduce_max(best);
}

template <class T>
T max_distance(const T* x, const T* y, index_t n) {
  Vec<T> best(T(0));
  index_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>)
    best = xsimd::max(best, xsimd::abs(load(x + i) - load(y + i)));
  if (i < n) {
    const index_t count = n - i;
    const Vec<T> rest = load_partial(x + i, count, T(0)) - load_partial(y + i, count, T(0));
    best = xsimd::max(best, xsimd::abs(rest));
  }
  return xsimd::reduce_max(best);
}

template <class T, class F>
double sum_over(index_t n, F vector_at, T) {
  // Runs of 64 vectors are summed in T, the runs in double.
  double total = 0;
  for (index_t i = 0; i < n;) {
    Vec<T> sum(T(0));
    for (index_t run = 0; run < 64 && i < n; ++run, i += kLanes<T>) {
      sum += vector_at(i, n - i < kLanes<T> ? n - i : kLanes<T>);
    }
    total += static_cast<double>(xsimd::reduce_add(sum));
  }
  return total;
}

template <class T>
Vec<T> load_upto(const T* p, index_t count) {
  return count == kLanes<T> ? load(p) : load_partial(p, count, T(0));
}

template <class T>
T max_magnitude(const T* x, index_t n) {
  Vec<T> best(T(0));
  for (index_t i = 0; i < n; i += kLanes<T>)
    best = xsimd::max(best, xsimd::abs(load_upto(x + i, n - i < kLanes<T> ? n - i : kLanes<T>)));
  return xsimd::reduce_max(best);
}

/// The norm of x, of which the sum of squares is at hand.
template <class T>
double norm_of_squares(double squares, const T* x, index_t n) {
  // Nearly always no square is too large, and those that are too small do not matter.
  constexpr auto kLost = static_cast<double>(std::numeric_limits<T>::min());  // of each
  if (squares * 1e-9 > kLost * static_cast<double>(n) &&
      squares <= static_cast<double>(std::numeric_limits<T>::max()))
    return std::sqrt(squares);
  const T peak = max_magnitude(x, n);
  if (!(peak > T(0))) return 0;
  // Scaled by powers of two, in two factors because the inverse of a subnormal number overflows.
  int exponent = 0;
  std::frexp(peak, &exponent);
  const int half = -exponent / 2;
  const Vec<T> first(std::ldexp(T(1), half)), second(std::ldexp(T(1), -exponent - half));
  const double scaled = sum_over(
      n,
      [x, &first, &second](index_t i, index_t count) {
        const Vec<T> v = load_upto(x + i, count) * first * second;
        return v * v;
      },
      T());
  return std::ldexp(std::sqrt(scaled), exponent);
}

template <class T>
double norm(const T* x, index_t n) {
  const double squares = sum_over(
      n,
      [x](index_t i, index_t count) {
        const Vec<T> v = load_upto(x + i, count);
        return v * v;
      },
      T());
  return norm_of_squares(squares, x, n);
}

template <class T>
double l1_distance(const T* x, const T* y, index_t n) {
  return sum_over(
      n,
      [x, y](index_t i, index_t count) {
        return xsimd::abs(load_upto(x + i, count) - load_upto(y + i, count));
      },
      T());
}

template <class T>
bool all_finite(const T* x, index_t n) {
  // 0 * x is 0 for finite x and NaN otherwise; NaN stays in a sum.
  Vec<T> sum(T(0));
  const Vec<T> zero(T(0));
  index_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) sum += zero * load(x + i);
  if (i < n) sum += zero * load_partial(x + i, n - i, T(0));
  return xsimd::reduce_add(sum) == T(0);
}

template <class T>
void scale(T* y, T factor, index_t n) {
  index_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(y + i, load(y + i) * Vec<T>(factor));
  for (; i < n; ++i) y[i] *= factor;
}

template <class T>
double subtract_product(T* y, T factor, const T* a, const T* b, index_t n) {
  const Vec<T> times(factor);
  Vec<T> sum(T(0));
  index_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vec<T> product = load(a + i) * load(b + i);
    store(y + i, xsimd::fnma(times, product, load(y + i)));
    sum += product;
  }
  double rest = 0;
  for (; i < n; ++i) {
    const T product = a[i] * b[i];
    y[i] -= factor * product;
    rest += static_cast<double>(product);
  }
  return rest + static_cast<double>(xsimd::reduce_add(sum));
}

}  // namespace
}  // namespace convbasis

#include "cpu/simd/band_impl.h"
#include "cpu/simd/correlation_impl.h"

namespace convbasis {
namespace {

template <class T>
constexpr Kernels<T> kTable{
    CONVBASIS_SIMD_BUILD,
    static_cast<int>(kLanes<T>),
    exp_shifted<T>,
    exp_sum<T>,
    max_value<T>,
    max_magnitude<T>,
    max_distance<T>,
    norm<T>,
    measure_rows<T>,
    l1_distance<T>,
    copy_reversed<T>,
    all_finite<T>,
    scale<T>,
    subtract_product<T>,
    hide<T>,
    dots<T>,
    band_dots<T>,
    first_apart<T>,
    DirectToeplitz<T, Vec<T>>::multiply,
    DirectToeplitz<T, Vec<T>>::multiply_transposed,
    correlate_directly<T>,
    VectorFft<T, Vec<T>>::forward_rows,
    VectorFft<T, Vec<T>>::inverse_rows,
    VectorFft<T, Vec<T>>::forward_windows,
    VectorFft<T, Vec<T>>::inverse_windows,
    Products<T, Vec<T>>::multiply,
    Products<T, Vec<T>>::multiply_transposed,
    Correlations<T>::correlate,
    {LowRank<T, Vec<T>>::monomials_across, LowRank<T, Vec<T>>::monomials_along,
     LowRank<T, Vec<T>>::add_state_product, LowRank<T, Vec<T>>::add_outer_products,
     LowRank<T, Vec<T>>::polynomial_tile},
};

}  // namespace
}  // namespace convbasis
