#include <algorithm>
#include <cmath>

#include "check.h"
#include "cpu/correlate.h"
#include "cpu/fft_plan.h"
#include "strips.h"

// Correlations of rows, the adjoint of products with kernels.

using namespace convbasis;

namespace {

/// out(r, t) of all strips, on top of `before`.
template <class T>
std::vector<T> correlate(const StripLayout& layout, const Schedule& schedule,
                         const std::vector<T>& x, const std::vector<T>& y, index_t channels,
                         int threads, T before) {
  std::vector<T> out(static_cast<std::size_t>(layout.count() * layout.rows), before);
  StageSeconds seconds;
  correlate_strips<T>(layout, schedule, {x.data(), channels}, {y.data(), channels}, channels,
                      {out.data(), layout.rows}, {threads}, seconds);
  return out;
}

/// Largest error relative to the norms of the rows of x and y that take part.
template <class T>
void check_against_sums(const StripLayout& layout, const std::vector<T>& x, const std::vector<T>& y,
                        index_t channels, const std::vector<T>& out, T before) {
  double worst = 0, largest = 0;
  for (index_t r = 0; r < layout.count(); ++r) {
    for (index_t t = 0; t < layout.rows; ++t) {
      long double sum = 0, x_size = 0, y_size = 0;
      for (index_t j = layout.begin(r); j < layout.end(r) && j + t < layout.rows; ++j) {
        for (index_t c = 0; c < channels; ++c) {
          const long double a = x[static_cast<std::size_t>(j * channels + c)];
          const long double b = y[static_cast<std::size_t>((j + t) * channels + c)];
          sum += a * b;
          x_size += a * a;
          y_size += b * b;
        }
      }
      const auto got = static_cast<long double>(out[static_cast<std::size_t>(r * layout.rows + t)]);
      const long double size = std::sqrt(x_size * y_size);
      if (size == 0) {
        CHECK(got == static_cast<long double>(before));  // outside: untouched
        continue;
      }
      const long double error = std::abs(got - static_cast<long double>(before) - sum);
      // What a row of a block has to do with its neighbours depends on how many there are.
      const long double around = std::sqrt(static_cast<long double>(layout.rows * channels));
      worst = larger(worst, static_cast<double>(error / around));
      largest = std::max(largest, static_cast<double>(std::abs(sum) / around));
    }
  }
  const double depth = std::sqrt(static_cast<double>(layout.rows)) + 10;
  const double tolerance = kEps<T> * depth * std::sqrt(static_cast<double>(channels)) / 2;
  CHECK_NEAR(worst, 0.0, tolerance);
  CHECK(layout.count() == 0 || layout.columns == 0 || largest > 20 * tolerance);
}

template <class T>
void check_all_schedules() {
  const index_t channels = kernels<T>().lanes * 3;
  for (const Strips<T>& strips : strips_of_every_shape<T>()) {
    const StripLayout& layout = strips.layout;
    const auto x = random_numbers<T>(layout.columns * channels, 5);
    const auto y = random_numbers<T>(layout.rows * channels, 6);
    for (const Schedule& schedule : schedules()) {
      const auto out = correlate<T>(layout, schedule, x, y, channels, 1, T(0.5));
      check_against_sums<T>(layout, x, y, channels, out, T(0.5));
      for (const int threads : {2, 3})
        CHECK(correlate<T>(layout, schedule, x, y, channels, threads, T(0.5)) == out);
    }
  }
}

/// <y, A x> = sum over strips and lags of kernel * correlation.
template <class T>
void check_adjoint() {
  const index_t channels = kernels<T>().lanes, n = 300;
  const Strips<T> strips(n, n, {0, 7, 100, 101, 256});
  const auto x = random_numbers<T>(n * channels, 7), y = random_numbers<T>(n * channels, 8);
  for (const Schedule& schedule : schedules()) {
    std::vector<T> product(static_cast<std::size_t>(n * channels));
    StageSeconds seconds;
    multiply_strips<T>(strips.matrix(), schedule, false, {x.data(), channels},
                       {product.data(), channels}, channels, {1}, seconds);
    double left = 0, right = 0, size = 0;
    for (std::size_t i = 0; i < product.size(); ++i) {
      const double term = static_cast<double>(product[i]) * static_cast<double>(y[i]);
      left += term;
      size += term * term;
    }
    const auto out = correlate<T>(strips.layout, schedule, x, y, channels, 1, T(0));
    for (std::size_t i = 0; i < out.size(); ++i)
      right += static_cast<double>(out[i]) * static_cast<double>(strips.kernels[i]);
    CHECK_NEAR(right, left, 50 * kEps<T> * std::sqrt(size));
    CHECK(std::abs(left) > 1e-3 * std::sqrt(size));
  }
}

template <class T>
void check_direct_kernels() {
  for (const Kernels<T>* simd : available_kernels<T>()) {
    const index_t channels = simd->lanes * 2;
    for (const index_t stop : {1, 2, 5, 16, 17, 33, 64}) {
      const auto x = random_numbers<T>(stop * channels, 1),
                 y = random_numbers<T>(stop * channels, 2);
      for (index_t begin = 0; begin < stop; begin += 3) {
        for (const index_t end : {begin + 1, (begin + stop + 1) / 2, stop}) {
          const StripLayout layout{stop, end, {begin}};
          std::vector<T> out(static_cast<std::size_t>(stop), T(2));
          simd->correlate_directly(begin, end, stop, {x.data(), channels}, {y.data(), channels},
                                   channels, out.data());
          check_against_sums<T>(layout, x, y, channels, out, T(2));
        }
      }
    }
  }
}

/// One frequency after the other: conj(piece) * block at each block lag, over the pieces of a strip
/// and over channels. Two spans, of five and three blocks; strips meet in the first.
template <class T>
void check_frequencies() {
  constexpr index_t kStrips = 3, kFrequencies = 4;
  const std::vector<index_t> first{0, 3, 5, 8}, lags{4, 2, 4};
  const std::vector<index_t> block{0, 1, 4, 2, 3, 0, 5, 6}, reach{4, 3, 0, 2, 1, 4, 2, 1};
  for (const Kernels<T>* simd : available_kernels<T>()) {
    const index_t lanes = simd->lanes, padding = std::max<index_t>(lanes / 2, 1);
    std::vector<index_t> window, block_spectra, position_of_block, position, piece_spectra;
    index_t windows = 1, spectra = 0;
    for (const index_t count : lags) {
      window.push_back(windows);
      windows += (count + padding - 1) / padding * padding;
    }
    for (const index_t b : {0, 1, 2, 3, 4, 5, 6, 7}) {
      position_of_block.push_back(static_cast<index_t>(block_spectra.size()));
      block_spectra.push_back(b == 0 || b == 5 ? -1 : spectra++);  // nothing comes before them
      if (b == 4 || b == 7)
        block_spectra.insert(block_spectra.end(), static_cast<std::size_t>(padding), -1);
    }
    for (std::size_t s = 0; s < block.size(); ++s) {
      position.push_back(position_of_block[static_cast<std::size_t>(block[s])]);
      piece_spectra.push_back(reach[s] > 0 ? spectra++ : -1);
    }
    const auto pieces = static_cast<index_t>(position.size()),
               blocks = static_cast<index_t>(block_spectra.size());
    const index_t stride = 2 * lanes * (kFrequencies + 1);
    const auto values = random_numbers<T>(spectra * stride, 11);
    std::vector<T> scratch(static_cast<std::size_t>(kFrequencies * (pieces + blocks) * 2 * lanes)),
        out(static_cast<std::size_t>(2 * kFrequencies * windows), T(3));
    simd->correlate({kStrips,
                     first.data(),
                     window.data(),
                     lags.data(),
                     pieces,
                     position.data(),
                     reach.data(),
                     blocks,
                     values.data(),
                     stride,
                     piece_spectra.data(),
                     block_spectra.data(),
                     kFrequencies,
                     scratch.data(),
                     {out.data(), out.data() + windows, 2 * windows}});
    double largest = 0;
    for (std::size_t r = 0; r < kStrips; ++r)
      for (index_t f = 0; f < kFrequencies; ++f)
        for (index_t lag = 1; lag <= lags[r]; ++lag) {
          double re = 3, im = 3;
          for (index_t piece = first[r]; piece < first[r + 1]; ++piece) {
            const auto s = static_cast<std::size_t>(piece);
            if (reach[s] < lag) continue;
            const T* x = values.data() + piece_spectra[s] * stride + f * 2 * lanes;
            const T* y = values.data() + f * 2 * lanes +
                         block_spectra[static_cast<std::size_t>(position[s] + lag)] * stride;
            for (index_t c = 0; c < lanes; ++c) {
              const auto xr = static_cast<double>(x[c]), xi = static_cast<double>(x[lanes + c]);
              const auto yr = static_cast<double>(y[c]), yi = static_cast<double>(y[lanes + c]);
              re += xr * yr + xi * yi;
              im += xr * yi - xi * yr;
            }
          }
          const T* got = out.data() + 2 * f * windows + window[r] + lag - 1;
          CHECK_NEAR(static_cast<double>(got[0]), re, 100 * kEps<T>);
          CHECK_NEAR(static_cast<double>(got[windows]), im, 100 * kEps<T>);
          largest = std::max(largest, std::abs(re - 3));
        }
    CHECK(largest > 1);
    CHECK(out[0] == T(3));  // before the first window
  }
}

/// <w, sums of windows of spectrum s> = real part of <spectrum of windows w, s>: one is the other's
/// adjoint, whatever their order of frequencies is.
template <class T>
void check_windows() {
  for (const Kernels<T>* simd : available_kernels<T>()) {
    for (const index_t length : {16, 32, 64, 256, 2048}) {
      const FftPlan<T> plan(length);
      const auto lanes = static_cast<std::size_t>(simd->lanes);
      const index_t size = length * simd->lanes;
      const auto lags = random_numbers<T>(2 * size, 3), in = random_numbers<T>(2 * size, 4);
      std::vector<T> sums(static_cast<std::size_t>(2 * size), T(0)), spectra(sums);
      std::vector<Window<T>> windows(lanes);
      std::vector<WindowSums<T>> to(lanes);
      for (std::size_t l = 0; l < lanes; ++l) {
        const auto lane = static_cast<index_t>(l);
        const index_t count = lane % 2 == 0 ? 2 * length : 2 * length - 3 * lane;
        windows[l] = {lags.data() + 2 * lane * length, count};
        to[l] = {sums.data() + (2 * lane + 1) * length, sums.data() + 2 * lane * length,
                 std::max<index_t>(count - length, 0), std::min(count, length)};
      }
      Buffer<T> scratch(2 * size);
      simd->forward_windows(plan.fft(), windows.data(),
                            {spectra.data(), spectra.data() + size, simd->lanes}, scratch.data());
      simd->inverse_windows(plan.fft(), {in.data(), in.data() + size, simd->lanes}, to.data(),
                            scratch.data());
      double left = 0, right = 0, terms = 0;
      for (std::size_t i = 0; i < sums.size(); ++i) {
        left += static_cast<double>(sums[i]) * static_cast<double>(lags[i]);
        const double term = static_cast<double>(spectra[i]) * static_cast<double>(in[i]);
        right += term;
        terms += std::abs(term);
      }
      CHECK_NEAR(left, right, 4 * kEps<T> * terms);
      CHECK(std::abs(right) > 1e-4 * terms);
      for (std::size_t l = 1; l < lanes; l += 2)  // nothing is written behind the last lag
        CHECK(sums[(2 * l + 2) * static_cast<std::size_t>(length) - 1] == T(0));
    }
  }
}

}  // namespace

TEST(correlations_are_the_sums_whatever_the_schedule_and_threads) {
  check_all_schedules<float>();
  check_all_schedules<double>();
}

TEST(correlation_is_the_adjoint_of_the_product) {
  check_adjoint<float>();
  check_adjoint<double>();
}

TEST(every_build_sums_lags_of_a_block_directly) {
  check_direct_kernels<float>();
  check_direct_kernels<double>();
}

TEST(every_build_sums_products_of_spectra) {
  check_frequencies<float>();
  check_frequencies<double>();
}

TEST(inverse_windows_is_the_adjoint_of_forward_windows) {
  check_windows<float>();
  check_windows<double>();
}
