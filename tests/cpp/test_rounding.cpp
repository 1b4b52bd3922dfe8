#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/attention.h"
#include "cpu/strips.h"

using namespace convbasis;

namespace {

template <class T>
std::vector<T> random_numbers(index_t count, double spread, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(spread * normal(random));
  return numbers;
}

/// Causal attention with logits that depend on the lag alone.
template <class T>
struct OneStrip {
  static constexpr index_t kRows = 560, kDim = 4;

  OneStrip(const std::vector<T>& logits, double value_scale)
      : kernel(logits),
        value(random_numbers<T>(kRows * kDim, value_scale, 3)),
        out(kRows * kDim),
        lse(kRows) {
    const index_t start = 0, count = 1;
    report =
        conv_attention<T>({contiguous_view<const index_t, 3>(&start, {1, 1, 1}),
                           contiguous_view<const index_t, 2>(&count, {1, 1}),
                           contiguous_view<const T, 4>(kernel.data(), {1, 1, 1, kRows}), kRows},
                          nullptr, contiguous_view<const T, 4>(value.data(), {1, 1, kRows, kDim}),
                          contiguous_view<T, 4>(out.data(), {1, 1, kRows, kDim}),
                          contiguous_view<T, 3>(lse.data(), {1, 1, kRows}));
  }

  /// |error| / |row| of a row, and of its lse.
  [[nodiscard]] std::pair<double, double> row_error(index_t i) const {
    const long double top = *std::max_element(kernel.begin(), kernel.begin() + i + 1);
    long double sum = 0, mean[kDim] = {}, error = 0, size = 0;
    for (index_t j = 0; j <= i; ++j) {
      const long double weight = std::exp(kernel[static_cast<std::size_t>(i - j)] - top);
      sum += weight;
      for (index_t c = 0; c < kDim; ++c)
        mean[c] += weight * static_cast<long double>(value[static_cast<std::size_t>(j * kDim + c)]);
    }
    for (index_t c = 0; c < kDim; ++c) {
      const long double got = out[static_cast<std::size_t>(i * kDim + c)], want = mean[c] / sum;
      error += (got - want) * (got - want);
      size += want * want;
    }
    const long double want_lse = top + std::log(sum);
    const long double lse_error = lse[static_cast<std::size_t>(i)] - want_lse;
    return {static_cast<double>(std::sqrt(error / size)),
            static_cast<double>(std::abs(lse_error) / (1 + std::abs(top)))};
  }

  std::vector<T> kernel, value, out, lse;
  ForwardReport report;
};

/// Checks every row. The logit of lag t is that of the step t is in: pairs (first lag, logit).
template <class T>
void check_steps(const std::vector<std::pair<index_t, T>>& steps, double value_scale,
                 index_t least_exact) {
  std::vector<T> logits(OneStrip<T>::kRows);
  for (const auto& [from, logit] : steps) std::fill(logits.begin() + from, logits.end(), logit);
  const OneStrip<T> run(logits, value_scale);
  CHECK(run.report.block_lengths.back() < run.kRows);  // FFTs were used
  CHECK(run.report.rows_exact[0] >= least_exact && run.report.rows_exact[0] <= run.kRows);
  const double budget = sizeof(T) == 4 ? 1e-4 : 2.5e-12;  // of a kept row
  CHECK(run.report.rounding_bound[0] <= budget);
  double worst = 0, worst_lse = 0;
  for (index_t i = 0; i < run.kRows; ++i) {
    const auto [error, lse_error] = run.row_error(i);
    worst = error <= worst ? worst : std::isnan(error) ? 1e300 : error;
    worst_lse = lse_error <= worst_lse ? worst_lse : std::isnan(lse_error) ? 1e300 : lse_error;
  }
  CHECK_NEAR(worst, 0.0, budget);
  CHECK_NEAR(worst_lse, 0.0, 4 * static_cast<double>(std::numeric_limits<T>::epsilon()));
}

}  // namespace

TEST(rows_whose_weights_underflow_are_summed_with_a_softmax_of_their_own) {
  check_steps<float>({{0, -200}, {150, 0}}, 1, 150);  // weights are 0
  check_steps<float>({{0, -100}, {150, 0}}, 1, 150);  // denormal, or flushed to 0
  check_steps<float>({{0, -84}, {150, 0}}, 1, 22);    // normal numbers, nearly lost
  check_steps<double>({{0, -800}, {150, 0}}, 1, 150);
}

TEST(rows_far_below_the_largest_weight_are_right) {
  // Rows before 150 see the small weights alone, those from 128 on from an FFT that also holds the
  // large ones: what it leaves there, divided by the row sum, overflows when squared.
  for (const float drop : {-20.F, -60.F, -65.F, -74.F})
    check_steps<float>({{0, drop}, {150, 0}}, 1, 22);
  for (const double drop : {-60., -400., -650.}) check_steps<double>({{0, drop}, {150, 0}}, 1, 22);
}

TEST(rows_far_below_the_small_weights_of_their_window_are_right) {
  // The same where the squares of the window's weights underflow.
  check_steps<float>({{0, -74}, {150, -53}, {400, 0}}, 1, 22);
  check_steps<double>({{0, -650}, {150, -560}, {400, 0}}, 1, 22);
}

TEST(the_size_of_the_values_does_not_matter) {
  for (const double size : {1e-37, 1e-28, 1e-18, 1e18, 1e28, 1e37})
    for (const float drop : {-16.F, -40.F, -60.F})
      check_steps<float>({{0, drop}, {150, 0}}, size, 22);
}

namespace {

/// Measured error of each diagonal block of A x against its estimate.
template <class T>
void check_estimate(const Schedule& schedule, double spread, unsigned seed) {
  constexpr index_t kRows = 300;
  const index_t channels = kernels<T>().lanes;
  const StripLayout layout{kRows, 290, {0, 40, 200}};
  std::vector<T> kernel = random_numbers<T>(3 * kRows, spread, seed);
  for (T& weight : kernel) weight = std::exp(weight);
  const std::vector<T> x = random_numbers<T>(kRows * channels, 1, seed + 1);
  const StripMatrix<T> matrix{layout, {kernel.data(), kRows}};
  std::vector<T> y(x.size());
  StageSeconds seconds;
  multiply_strips<T>(matrix, schedule, false, {x.data(), channels}, {y.data(), channels}, channels,
                     {1}, seconds);
  std::vector<double> norms;
  for (index_t i = 0; i < kRows; ++i)
    norms.push_back(kernels<T>().norm(x.data() + i * channels, channels));
  const std::vector<double> estimate =
      rounding_of_blocks<T>(matrix, schedule, norms, channels, {2});
  CHECK(static_cast<index_t>(estimate.size()) ==
        (kRows + schedule.diagonal - 1) / schedule.diagonal);
  for (index_t b = 0; b < static_cast<index_t>(estimate.size()); ++b) {
    const index_t first = b * schedule.diagonal, last = std::min(first + schedule.diagonal, kRows);
    long double error = 0, direct = 0;
    for (index_t i = first; i < last; ++i) {
      for (index_t c = 0; c < channels; ++c) {
        long double sum = 0, size = 0;
        for (index_t r = 0; r < layout.count(); ++r)
          for (index_t j = layout.begin(r); j < std::min(layout.end(r), i + 1); ++j) {
            const long double term =
                static_cast<long double>(matrix.kernels.row(r)[i - j]) *
                static_cast<long double>(x[static_cast<std::size_t>(j * channels + c)]);
            sum += term;
            size += term * term;
          }
        const long double e =
            static_cast<long double>(y[static_cast<std::size_t>(i * channels + c)]) - sum;
        error += e * e;
        direct += size;  // of a plain sum: an eps of the terms' norm
      }
    }
    const long double count = (last - first) * channels;
    const auto rms = static_cast<double>(std::sqrt(error / count));
    const double floor = static_cast<double>(std::numeric_limits<T>::epsilon()) *
                         static_cast<double>(std::sqrt(direct / count));
    const double estimated = estimate[static_cast<std::size_t>(b)];
    CHECK(rms <= 3 * (estimated + floor));
    CHECK(estimated <= 30 * (rms + floor));
    CHECK(b == 0 ? estimated == 0 : estimated > 0);  // nothing comes to the first block
  }
}

}  // namespace

TEST(estimates_are_about_the_error_that_ffts_leave) {
  for (const Schedule& schedule : std::vector<Schedule>{
           {{{32, 512}}, 32}, {{{64, 512}, {16, 64}}, 16}, {{{128, 512}, {64, 128}, {16, 64}}, 16}})
    for (const double spread : {0.5, 8.0}) {
      check_estimate<float>(schedule, spread, 1);
      check_estimate<double>(schedule, spread, 2);
    }
}

TEST(without_levels_nothing_is_estimated) {
  const std::vector<float> kernel(64, 1.F);
  const std::vector<double> norms(64, 1.0);
  const std::vector<double> estimate =
      rounding_of_blocks<float>({{64, 64, {0}}, {kernel.data(), 64}}, {{}, 64}, norms, 1, {});
  CHECK(estimate == std::vector<double>{0.0});
}
