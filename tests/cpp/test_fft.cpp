#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <memory>
#include <numbers>
#include <random>

#include "check.h"
#include "core/buffer.h"
#include "cpu/simd/kernels.h"

// Transforms of every build against the plain O(n^2) sums in long double.

using namespace convbasis;

namespace {

using Complex = std::complex<long double>;

template <class T>
constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

template <class T>
std::vector<T> random_numbers(index_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(normal(random));
  return numbers;
}

template <class Test>
void for_each_build(const Test& test) {
  for (const Kernels<float>* simd : available_kernels<float>()) test(*simd, float());
  for (const Kernels<double>* simd : available_kernels<double>()) test(*simd, double());
}

/// The larger error; NaN counts as infinite.
double larger(double worst, double error) {
  if (error <= worst) return worst;
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

/// exp(-2 pi i j / length) for j < length.
std::vector<Complex> roots_of_unity(index_t length) {
  std::vector<Complex> roots;
  for (index_t j = 0; j < length; ++j) {
    const long double angle = -2 * std::numbers::pi_v<long double> * j / length;
    roots.emplace_back(std::cos(angle), std::sin(angle));
  }
  return roots;
}

/// Spectrum 0 .. length / 2 of a real signal.
std::vector<Complex> plain_forward(const std::vector<long double>& signal) {
  const auto length = static_cast<index_t>(signal.size());
  const std::vector<Complex> roots = roots_of_unity(length);
  std::vector<Complex> spectrum(static_cast<std::size_t>(length / 2 + 1));
  for (index_t f = 0; f <= length / 2; ++f)
    for (index_t i = 0; i < length; ++i)
      if (signal[static_cast<std::size_t>(i)] != 0)
        spectrum[static_cast<std::size_t>(f)] +=
            signal[static_cast<std::size_t>(i)] * roots[static_cast<std::size_t>(f * i % length)];
  return spectrum;
}

double norm(const std::vector<long double>& signal) {
  long double sum = 0;
  for (const long double value : signal) sum += value * value;
  return static_cast<double>(std::sqrt(sum));
}

/// A coefficient of a transform errs by eps times the signal's norm, times at most its depth.
template <class T>
double fft_tolerance(index_t length) {
  return kEps<T> * std::log2(2.0 * static_cast<double>(length));
}

/// A spectrum of some channels, misaligned and with a gap after each frequency.
template <class T>
struct Lines {
  Lines(index_t length, index_t channels)
      : stride(channels + 2),
        re(static_cast<std::size_t>((length / 2 + 1) * stride), T(99)),
        im(re) {}
  [[nodiscard]] Spectrum<T> view() { return {re.data() + 1, im.data() + 1, stride}; }
  [[nodiscard]] Complex at(index_t f, index_t channel) const {
    const auto i = static_cast<std::size_t>(f * stride + channel + 1);
    return {static_cast<long double>(re[i]), static_cast<long double>(im[i])};
  }
  index_t stride;
  std::vector<T> re, im;
};

/// Compares every channel of a spectrum with plain sums.
template <class T>
void check_spectrum(const Lines<T>& got, const std::vector<std::vector<long double>>& signals) {
  for (std::size_t lane = 0; lane < signals.size(); ++lane) {
    const std::vector<Complex> want = plain_forward(signals[lane]);
    const double size = norm(signals[lane]);
    double worst = 0, largest = 0;
    for (std::size_t f = 0; f < want.size(); ++f) {
      const Complex value = got.at(static_cast<index_t>(f), static_cast<index_t>(lane));
      worst = larger(worst, static_cast<double>(std::abs(value - want[f])));
      largest = std::max(largest, static_cast<double>(std::abs(want[f])));
    }
    const double tolerance = fft_tolerance<T>(static_cast<index_t>(signals[lane].size())) * size;
    CHECK_NEAR(worst, 0.0, tolerance);
    CHECK(size == 0 || largest > 20 * tolerance);  // zeros would not pass
  }
}

constexpr index_t kLengths[] = {2, 4, 6, 16, 30, 64, 128};

}  // namespace

TEST(forward_rows_match_plain_sums) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for (const index_t length : kLengths) {
      const std::unique_ptr<RealFft<T>> fft(simd.make_fft(length));
      const index_t half = length / 2;
      for (const auto& [offset, count] : std::vector<std::pair<index_t, index_t>>{
               {0, length}, {0, half}, {half, half}, {1, 1}, {half - 1, 1}, {1, 0}}) {
        const index_t channels = count == 1 ? 3 * simd.lanes : simd.lanes, stride = channels + 3;
        Buffer<T> scratch(length * channels);
        const std::vector<T> x = random_numbers<T>(count * stride + 1, 1);
        Lines<T> out(length, channels);
        simd.forward_rows(*fft, {x.data() + 1, stride}, offset, count, channels, out.view(),
                          scratch.data());
        std::vector<std::vector<long double>> signals;
        for (index_t c = 0; c < channels; ++c) {
          signals.emplace_back(length, 0.0L);
          for (index_t i = 0; i < count; ++i)
            signals.back()[static_cast<std::size_t>(offset + i)] =
                static_cast<long double>(x[static_cast<std::size_t>(i * stride + c + 1)]);
        }
        check_spectrum(out, signals);
      }
    }
  });
}

TEST(forward_windows_match_plain_sums) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for (const index_t length : {16, 64, 128}) {
      const std::unique_ptr<RealFft<T>> fft(simd.make_fft(length));
      Buffer<T> scratch(length * simd.lanes);
      const index_t step = length / 2;
      // Kernels that end before, inside and after the windows; ends inside a vector.
      for (const index_t size :
           {index_t{0}, index_t{1}, step - 1, step, step + 1, 2 * length + 5, 17 * step + 3}) {
        const std::vector<T> x = random_numbers<T>(size + 1, 2);
        Lines<T> out(length, simd.lanes);
        simd.forward_windows(*fft, x.data() + 1, size, step, out.view(), scratch.data());
        std::vector<std::vector<long double>> signals;
        for (index_t lane = 0; lane < simd.lanes; ++lane) {
          signals.emplace_back(length, 0.0L);
          for (index_t i = 0; i < length && lane * step + i < size; ++i)
            signals.back()[static_cast<std::size_t>(i)] =
                static_cast<long double>(x[static_cast<std::size_t>(lane * step + i + 1)]);
        }
        check_spectrum(out, signals);
      }
    }
  });
}

namespace {

/// Value `place` of the inverse transform of one channel, whose spectrum has its other half by
/// symmetry; values 0 and length / 2 are taken to be real.
template <class T>
long double plain_inverse(const Lines<T>& in, const std::vector<Complex>& roots, index_t channel,
                          index_t place) {
  const auto length = static_cast<index_t>(roots.size());
  long double value = in.at(0, channel).real();
  for (index_t f = 1; f <= length / 2; ++f) {
    const Complex root = roots[static_cast<std::size_t>(f * place % length)];
    const Complex coefficient = in.at(f, channel);
    value += f < length / 2 ? 2 * (coefficient * std::conj(root)).real()
                            : coefficient.real() * root.real();
  }
  return value / static_cast<long double>(length);
}

template <class T>
void check_inverse(const Kernels<T>& simd, index_t length, index_t vectors, index_t offset,
                   index_t count) {
  const std::unique_ptr<RealFft<T>> fft(simd.make_fft(length));
  const std::vector<Complex> roots = roots_of_unity(length);
  const index_t channels = vectors * simd.lanes, stride = channels + 1;
  Buffer<T> scratch(length * channels);
  Lines<T> in(length, channels);
  in.re = random_numbers<T>(static_cast<index_t>(in.re.size()), 3);
  in.im = random_numbers<T>(static_cast<index_t>(in.im.size()), 4);
  std::vector<T> y = random_numbers<T>(count * stride + 1, 5);
  const std::vector<T> before = y;
  const Spectrum<T> view = in.view();
  simd.inverse_rows(*fft, {view.re, view.im, view.stride}, offset, count, channels,
                    {y.data() + 1, stride}, scratch.data());
  for (index_t c = 0; c < channels; ++c) {
    long double energy = 0;
    for (index_t f = 0; f <= length / 2; ++f) energy += 2 * std::norm(in.at(f, c));
    const double size = static_cast<double>(std::sqrt(energy)) / static_cast<double>(length);
    double worst = 0;
    for (index_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i * stride + c + 1);
      const long double want =
          static_cast<long double>(before[at]) + plain_inverse(in, roots, c, offset + i);
      const long double error = std::abs(static_cast<long double>(y[at]) - want);
      worst = larger(worst, static_cast<double>(error / (size + std::abs(want))));
    }
    CHECK_NEAR(worst, 0.0, fft_tolerance<T>(length));
  }
  for (index_t i = 0; i <= count; ++i)  // nothing between the rows
    CHECK(y[static_cast<std::size_t>(i * stride)] == before[static_cast<std::size_t>(i * stride)]);
}

}  // namespace

TEST(inverse_rows_add_the_plain_inverse) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for (const index_t length : kLengths) {
      check_inverse(simd, length, 1, 0, length);
      check_inverse(simd, length, 1, length / 2, length / 2);
      check_inverse(simd, length, 3, 1, 1);
      check_inverse(simd, length, 2, length / 2, 0);
    }
  });
}

namespace {

/// Both products against complex sums, where weights, inputs and outputs are all dense.
template <class T>
void check_product(const Kernels<T>& simd, bool conjugate, index_t vectors, index_t outputs,
                   index_t inputs) {
  constexpr index_t kFirstOut = 1, kFirstIn = 2;
  const index_t channels = vectors * simd.lanes, stride = channels + 1;
  const index_t last_out = kFirstOut + outputs, last_in = kFirstIn + inputs;
  const index_t owners = std::max(last_out, last_in) + 1;
  const std::vector<T> wr = random_numbers<T>(20 * owners, 10),
                       wi = random_numbers<T>(20 * owners, 11);
  std::vector<index_t> offset;  // of the owner of the weights: irregular and overlapping
  for (index_t i = 0; i < owners; ++i) offset.push_back(3 * i % 7 + 2 * i);
  const std::vector<T> xr = random_numbers<T>(last_in * stride, 12),
                       xi = random_numbers<T>(last_in * stride, 13);
  std::vector<T> yr = random_numbers<T>((last_out + 1) * stride, 14),
                 yi = random_numbers<T>((last_out + 1) * stride, 15);
  const std::vector<T> yr_before = yr, yi_before = yi;
  const FrequencyProduct<T> product{
      wr.data(),           wi.data(),           offset.data(),       {xr.data(), stride},
      {xi.data(), stride}, {yr.data(), stride}, {yi.data(), stride}, channels};
  (conjugate ? simd.multiply_conjugate : simd.multiply)(product, kFirstOut, last_out, kFirstIn,
                                                        last_in);
  double worst = 0;
  for (index_t o = 0; o <= last_out; ++o) {
    for (index_t c = 0; c < stride; ++c) {
      const auto at = static_cast<std::size_t>(o * stride + c);
      Complex want(static_cast<long double>(yr_before[at]),
                   static_cast<long double>(yi_before[at]));
      long double size = std::abs(want);
      const bool written = o >= kFirstOut && o < last_out && c < channels;
      for (index_t s = kFirstIn; written && s < last_in; ++s) {
        const auto owner = static_cast<std::size_t>(conjugate ? o : s);
        const auto w = static_cast<std::size_t>(offset[owner] + (conjugate ? s : o));
        const auto from = static_cast<std::size_t>(s * stride + c);
        Complex weight(static_cast<long double>(wr[w]), static_cast<long double>(wi[w]));
        if (conjugate) weight = std::conj(weight);
        const Complex x(static_cast<long double>(xr[from]), static_cast<long double>(xi[from]));
        want += weight * x;
        size += 2 * std::abs(weight) * std::abs(x);
      }
      const Complex got(static_cast<long double>(yr[at]), static_cast<long double>(yi[at]));
      if (!written) CHECK(got == want);
      worst = larger(worst, static_cast<double>(std::abs(got - want) / size));
    }
  }
  CHECK_NEAR(worst, 0.0, kEps<T> * static_cast<double>(inputs + 1));
}

}  // namespace

TEST(products_of_one_frequency_match_complex_sums) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for (const bool conjugate : {false, true})
      for (const index_t vectors : {1, 2, 3})
        for (const index_t outputs : {0, 1, 2, 3, 4, 5, 9})
          for (const index_t inputs : {0, 1, 2, 7})
            check_product(simd, conjugate, vectors, outputs, inputs);
  });
}
