#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <numbers>
#include <random>

#include "check.h"
#include "core/buffer.h"
#include "cpu/fft_plan.h"
#include "cpu/simd/kernels.h"

// Transforms of every build against plain O(L^2) sums in long double.

using namespace convbasis;

namespace {

using Complex = std::complex<long double>;

constexpr index_t kLengths[] = {16, 32, 64, 128, 256, 512, 1024, 2048, 8192};

template <class T>
std::vector<T> random_numbers(index_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(normal(random));
  return numbers;
}

/// Calls test(simd, fft) with every build and length.
template <class Test>
void for_each_transform(const Test& test) {
  const auto with = [&test]<class T>(const std::vector<const Kernels<T>*>& builds) {
    for (const Kernels<T>* simd : builds)
      for (const index_t length : kLengths) {
        const FftPlan<T> plan(length);
        CHECK(plan.fft().length == length);
        test(*simd, plan.fft());
      }
  };
  with(available_kernels<float>());
  with(available_kernels<double>());
}

/// What tests of a transform gather: the largest error, and the largest number that was wanted.
struct Errors {
  void add(const Complex& got, const Complex& want) {
    const auto error = static_cast<double>(std::abs(got - want));
    worst = error <= worst || std::isnan(worst) ? worst : error;
    largest = std::max(largest, static_cast<double>(std::abs(want)));
  }
  void check(double tolerance) const {
    CHECK_NEAR(worst, 0.0, tolerance);
    CHECK(largest == 0 || largest > 20 * tolerance);  // zeros would not pass
  }
  double worst = 0, largest = 0;
};

double norm(const std::vector<Complex>& signal) {
  long double sum = 0;
  for (const Complex& value : signal) sum += std::norm(value);
  return static_cast<double>(std::sqrt(sum));
}

/// A number that a transform makes errs by eps times the norm of what it is made of, times at most
/// the depth of the transform.
template <class T>
double fft_tolerance(index_t length) {
  return static_cast<double>(std::numeric_limits<T>::epsilon()) *
         std::log2(2.0 * static_cast<double>(length));
}

/// Lanes to compare with plain sums: two of a long transform, where sums are slow.
template <class T>
std::vector<index_t> lanes_to_check(const Kernels<T>& simd, index_t length) {
  if (length > 128) return {0, simd.lanes - 1};
  std::vector<index_t> lanes;
  for (index_t lane = 0; lane < simd.lanes; ++lane) lanes.push_back(lane);
  return lanes;
}

/// The values of a transform: one vector of channels at each root.
template <class T>
struct Values {
  Values(const Kernels<T>& simd, index_t length)
      : lanes(simd.lanes), numbers(2 * length * simd.lanes) {
    std::fill_n(numbers.data(), numbers.size(), std::numeric_limits<T>::quiet_NaN());
  }
  T& re(index_t f, index_t lane) { return numbers[2 * f * lanes + lane]; }
  T& im(index_t f, index_t lane) { return numbers[(2 * f + 1) * lanes + lane]; }
  [[nodiscard]] Complex at(index_t f, index_t lane) const {
    return {static_cast<long double>(numbers[2 * f * lanes + lane]),
            static_cast<long double>(numbers[(2 * f + 1) * lanes + lane])};
  }
  index_t lanes;
  Buffer<T> numbers;
};

/// Rows of one vector of channels, misaligned, and with NaN between and around them.
template <class T>
struct Strided {
  Strided(const Kernels<T>& simd, index_t count, unsigned seed)
      : lanes(simd.lanes),
        stride(simd.lanes + 3),
        numbers(random_numbers<T>(count * stride + 1, seed)) {
    for (std::size_t i = 0; i < numbers.size(); ++i)
      if (is_gap(i)) numbers[i] = std::numeric_limits<T>::quiet_NaN();
  }
  [[nodiscard]] bool is_gap(std::size_t i) const {
    return i == 0 || static_cast<index_t>(i - 1) % stride >= lanes;
  }
  [[nodiscard]] Rows<T> rows() { return {numbers.data() + 1, stride}; }
  [[nodiscard]] Rows<const T> rows() const { return {numbers.data() + 1, stride}; }
  [[nodiscard]] long double at(index_t row, index_t lane) const {
    return static_cast<long double>(rows().row(row)[lane]);
  }
  /// Nothing but NaN where no rows are.
  [[nodiscard]] bool gaps_are_untouched() const {
    for (std::size_t i = 0; i < numbers.size(); ++i)
      if (is_gap(i) && !std::isnan(numbers[i])) return false;
    return true;
  }
  index_t lanes, stride;
  std::vector<T> numbers;
};

/// From one row or value to the next that is compared with a plain sum: all but of the longest.
/// Odd, so that all places in a vector are met.
index_t step_to_check(index_t length) { return length > 512 ? 127 : 1; }

/// The roots of z^L = i in the order of the values of a transform, which is its own: it shows in
/// the values of the polynomial z.
template <class T>
struct Roots {
  Roots(const Kernels<T>& simd, const BlockFft<T>& fft)
      : length(fft.length), values_of_z(simd, fft.length) {
    const long double turn = 2 * std::numbers::pi_v<long double>;
    for (index_t j = 0; j < 4 * length; ++j)
      circle.push_back(std::polar(1.0L, turn * j / (4 * length)));
    const std::vector<T> ones(static_cast<std::size_t>(simd.lanes), T(1));
    simd.forward_rows(fft, {ones.data(), 0}, 1, 1, values_of_z.numbers.data());
    for (index_t f = 0; f < length; ++f) {
      const long double angle = std::arg(values_of_z.at(f, 0)) / turn * 4 * length;
      angles.push_back((std::lround(angle) + 4 * length) % (4 * length));
    }
  }
  /// Root f to the power i. The circle has a power of two of steps.
  [[nodiscard]] const Complex& power(index_t f, index_t i) const {
    const index_t steps = angles[static_cast<std::size_t>(f)] * i;
    return circle[static_cast<std::size_t>(steps & (4 * length - 1))];
  }
  index_t length;
  Values<T> values_of_z;
  std::vector<Complex> circle;  ///< exp(2 pi i j / (4 L)) for j < 4 L
  std::vector<index_t> angles;  ///< of root f: its place in the circle
};

/// Value f of the polynomial with these coefficients.
template <class T>
Complex plain_value(const Roots<T>& roots, const std::vector<Complex>& signal, index_t f) {
  Complex value;
  for (index_t i = 0; i < roots.length; ++i)
    if (const Complex& x = signal[static_cast<std::size_t>(i)]; x != Complex(0))
      value += x * roots.power(f, i);
  return value;
}

/// Compares the values got(f) with the plain ones of a signal.
template <class T, class Got>
void check_values(const Roots<T>& roots, const std::vector<Complex>& signal, const Got& got) {
  Errors errors;
  for (index_t f = 0; f < roots.length; f += step_to_check(roots.length))
    errors.add(got(f), plain_value(roots, signal, f));
  errors.check(fft_tolerance<T>(roots.length) * norm(signal));
}

/// Offset and count of rows: all, halves, single ones, some in the middle, none.
std::vector<std::pair<index_t, index_t>> row_ranges(index_t length) {
  const index_t half = length / 2;
  return {{0, length}, {0, half}, {half, half}, {1, 1}, {length - 1, 1}, {half - 3, 7}, {1, 0}};
}

}  // namespace

TEST(values_stand_at_the_roots) {
  for_each_transform([]<class T>(const Kernels<T>& simd, const BlockFft<T>& fft) {
    const index_t length = fft.length;
    const Roots<T> roots(simd, fft);
    Errors errors;
    for (index_t f = 0; f < length; ++f)
      for (index_t lane = 0; lane < simd.lanes; ++lane)
        errors.add(roots.values_of_z.at(f, lane), roots.power(f, 1));
    errors.check(fft_tolerance<T>(length));
    // i is L of the 4 L steps of the circle, so its roots are the steps 1, 5, 9, ...
    std::vector<index_t> sorted = roots.angles;
    std::sort(sorted.begin(), sorted.end());
    for (index_t f = 0; f < length; ++f) CHECK(sorted[static_cast<std::size_t>(f)] == 4 * f + 1);
  });
}

TEST(forward_rows_match_plain_sums) {
  for_each_transform([]<class T>(const Kernels<T>& simd, const BlockFft<T>& fft) {
    const Roots<T> roots(simd, fft);
    for (const auto& [offset, count] : row_ranges(fft.length)) {
      const Strided<T> x(simd, count, 1);
      Values<T> values(simd, fft.length);
      simd.forward_rows(fft, x.rows(), offset, count, values.numbers.data());
      for (const index_t lane : lanes_to_check(simd, fft.length)) {
        std::vector<Complex> signal(static_cast<std::size_t>(fft.length));
        for (index_t i = 0; i < count; ++i)
          signal[static_cast<std::size_t>(offset + i)] = x.at(i, lane);
        check_values(roots, signal, [&](index_t f) { return values.at(f, lane); });
      }
    }
  });
}

namespace {

/// Row i of the inverse times length, the real part.
template <class T>
long double plain_inverse(const Roots<T>& roots, const std::vector<Complex>& values, index_t i) {
  long double sum = 0;
  for (index_t f = 0; f < roots.length; ++f) {
    const Complex &value = values[static_cast<std::size_t>(f)], &root = roots.power(f, i);
    sum += value.real() * root.real() + value.imag() * root.imag();
  }
  return sum;
}

}  // namespace

TEST(inverse_rows_add_the_plain_inverse) {
  for_each_transform([]<class T>(const Kernels<T>& simd, const BlockFft<T>& fft) {
    const Roots<T> roots(simd, fft);
    for (const auto& [offset, count] : row_ranges(fft.length)) {
      Values<T> values(simd, fft.length);
      const std::vector<T> random = random_numbers<T>(values.numbers.size(), 2);
      std::vector<std::vector<Complex>> spectra(static_cast<std::size_t>(simd.lanes));
      std::copy(random.begin(), random.end(), values.numbers.data());
      for (index_t lane = 0; lane < simd.lanes; ++lane)
        for (index_t f = 0; f < fft.length; ++f)
          spectra[static_cast<std::size_t>(lane)].push_back(values.at(f, lane));
      Strided<T> y(simd, count, 3);
      const Strided<T> before = y;
      simd.inverse_rows(fft, values.numbers.data(), offset, count, y.rows());
      for (const index_t lane : lanes_to_check(simd, fft.length)) {
        const std::vector<Complex>& spectrum = spectra[static_cast<std::size_t>(lane)];
        Errors errors;
        for (index_t i = 0; i < count; i += step_to_check(fft.length))
          errors.add(y.at(i, lane) - before.at(i, lane),
                     plain_inverse(roots, spectrum, offset + i));
        errors.check(fft_tolerance<T>(fft.length) * norm(spectrum));
      }
      CHECK(y.gaps_are_untouched());
    }
  });
}

TEST(the_inverse_of_the_values_adds_rows_times_length) {
  for_each_transform([]<class T>(const Kernels<T>& simd, const BlockFft<T>& fft) {
    const auto factor = static_cast<long double>(fft.length);
    const Strided<T> x(simd, fft.length, 4);
    for (const auto& [offset, count] : row_ranges(fft.length)) {
      constexpr index_t kOutside = 2;  // rows before and after the asked ones
      Strided<T> y(simd, count + 2 * kOutside, 5);
      const Strided<T> before = y;
      Values<T> values(simd, fft.length);
      simd.forward_rows(fft, x.rows(), 0, fft.length, values.numbers.data());
      simd.inverse_rows(fft, values.numbers.data(), offset, count,
                        {y.rows().row(kOutside), y.stride});
      Errors errors;
      for (index_t i = -kOutside; i < count + kOutside; ++i)
        for (index_t lane = 0; lane < simd.lanes; ++lane) {
          const long double old = before.at(i + kOutside, lane), got = y.at(i + kOutside, lane);
          if (i < 0 || i >= count) {
            CHECK(got == old);
          } else {
            errors.add(got - old, factor * x.at(offset + i, lane));
          }
        }
      // There and back; the norm of the values is sqrt(L) times that of a channel, about sqrt(L).
      errors.check(2 * fft_tolerance<T>(fft.length) * static_cast<double>(factor));
      CHECK(y.gaps_are_untouched());
    }
  });
}

namespace {

/// A random kernel with lags 0 .. count - 1, and NaN behind them.
template <class T>
std::vector<T> random_lags(index_t count, unsigned seed) {
  std::vector<T> lags = random_numbers<T>(count, seed);
  lags.push_back(std::numeric_limits<T>::quiet_NaN());
  return lags;
}

template <class T>
long double lag_of(const Window<T>& window, index_t i) {
  return i < window.count ? static_cast<long double>(window.lags[i]) : 0;
}

}  // namespace

TEST(forward_windows_match_plain_sums) {
  for_each_transform([]<class T>(const Kernels<T>& simd, const BlockFft<T>& fft) {
    const index_t length = fft.length, stride = simd.lanes + 3;
    const Roots<T> roots(simd, fft);
    // Kernels that end before, inside and after the halves of a window; ends inside a vector.
    std::vector<std::vector<T>> kernels;
    std::vector<Window<T>> kinds{{nullptr, 0}};
    for (const index_t count : {index_t{0}, index_t{1}, length - 1, length, length + 1,
                                2 * length - 1, 2 * length, 2 * length + 7})
      kernels.push_back(random_lags<T>(count, static_cast<unsigned>(count)));
    for (const std::vector<T>& lags : kernels)
      kinds.push_back({lags.data(), static_cast<index_t>(lags.size()) - 1});
    // Each kind comes first once, so that a few lanes of the long transforms have seen all.
    for (std::size_t start = 0; start < kinds.size(); ++start) {
      std::vector<Window<T>> windows;
      for (index_t lane = 0; lane < simd.lanes; ++lane)
        windows.push_back(kinds[(start + static_cast<std::size_t>(lane)) % kinds.size()]);
      std::vector<T> re(static_cast<std::size_t>(length * stride), T(99)), im = re;
      Values<T> scratch(simd, length);
      simd.forward_windows(fft, windows.data(), {re.data() + 1, im.data() + 1, stride},
                           scratch.numbers.data());
      const index_t checked = length > 128 ? 1 : simd.lanes;
      for (index_t lane = 0; lane < checked; ++lane) {
        const Window<T>& window = windows[static_cast<std::size_t>(lane)];
        std::vector<Complex> signal;
        for (index_t i = 0; i < length; ++i)
          signal.push_back(Complex(lag_of(window, length + i), -lag_of(window, i)) /
                           static_cast<long double>(length));
        check_values(roots, signal, [&](index_t f) {
          const auto at = static_cast<std::size_t>(f * stride + lane + 1);
          return Complex(static_cast<long double>(re[at]), static_cast<long double>(im[at]));
        });
      }
      for (index_t i = 0; i < length * stride; ++i)  // nothing between the spectra
        if (i % stride == 0 || i % stride > simd.lanes)
          CHECK(re[static_cast<std::size_t>(i)] == T(99) &&
                im[static_cast<std::size_t>(i)] == T(99));
    }
  });
}

TEST(products_of_values_are_blocks_of_a_linear_convolution) {
  for_each_transform([]<class T>(const Kernels<T>& simd, const BlockFft<T>& fft) {
    const index_t length = fft.length, lanes = simd.lanes;
    std::vector<std::vector<T>> kernels;
    std::vector<Window<T>> windows;
    for (index_t lane = 0; lane < lanes; ++lane)
      kernels.push_back(random_lags<T>(2 * length - 3 * lane % length, 10));
    for (const std::vector<T>& lags : kernels)
      windows.push_back({lags.data(), static_cast<index_t>(lags.size()) - 1});
    Values<T> scratch(simd, length);
    std::vector<T> re(static_cast<std::size_t>(length * lanes)), im = re;
    simd.forward_windows(fft, windows.data(), {re.data(), im.data(), lanes},
                         scratch.numbers.data());

    const Strided<T> x(simd, length, 11);
    Strided<T> y(simd, length, 12);
    const Strided<T> before = y;
    Values<T> values(simd, length);
    simd.forward_rows(fft, x.rows(), 0, length, values.numbers.data());
    for (index_t f = 0; f < length; ++f)  // channel c meets window c
      for (index_t c = 0; c < lanes; ++c) {
        const auto at = static_cast<std::size_t>(f * lanes + c);
        const T xr = values.re(f, c), xi = values.im(f, c);
        values.re(f, c) = xr * re[at] - xi * im[at];
        values.im(f, c) = xr * im[at] + xi * re[at];
      }
    simd.inverse_rows(fft, values.numbers.data(), 0, length, y.rows());

    for (const index_t c : lanes_to_check(simd, length)) {
      const Window<T>& window = windows[static_cast<std::size_t>(c)];
      std::vector<Complex> lags, channel;
      for (index_t i = 0; i < 2 * length; ++i) lags.emplace_back(lag_of(window, i));
      for (index_t i = 0; i < length; ++i) channel.emplace_back(x.at(i, c));
      Errors errors;
      for (index_t i = 0; i < length; i += step_to_check(length)) {
        long double want = 0;
        for (index_t j = 0; j < length; ++j) want += lag_of(window, length + i - j) * x.at(j, c);
        errors.add(y.at(i, c) - before.at(i, c), want);
      }
      errors.check(fft_tolerance<T>(length) * norm(lags) * norm(channel));
    }
  });
}
