#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "check.h"
#include "convbasis/attention.h"

using namespace convbasis;

namespace {

template <class T>
constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

template <class T>
std::vector<T> random_numbers(index_t count, double spread, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(spread * normal(random));
  return numbers;
}

double larger(double worst, double error) {
  if (error <= worst) return worst;
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

/// Logits of one head as strips.
template <class T>
struct Logits {
  Logits(index_t n, std::vector<index_t> first_columns, double spread, unsigned seed)
      : rows(n),
        starts(std::move(first_columns)),
        kernels(random_numbers<T>(static_cast<index_t>(starts.size()) * n, spread, seed)),
        count(static_cast<index_t>(starts.size())) {}
  [[nodiscard]] BasisView<T> view(index_t columns) const {
    return {contiguous_view<const index_t, 3>(starts.data(), {1, 1, count}),
            contiguous_view<const index_t, 2>(&count, {1, 1}),
            contiguous_view<const T, 4>(kernels.data(), {1, 1, count, rows}), columns};
  }
  [[nodiscard]] long double operator()(index_t i, index_t j) const {
    for (std::size_t r = starts.size(); r-- > 0;)
      if (j >= starts[r])
        return kernels[r * static_cast<std::size_t>(rows) + static_cast<std::size_t>(i - j)];
    return 0;
  }
  index_t rows;
  std::vector<index_t> starts;
  std::vector<T> kernels;
  index_t count;
};

/// What conv_attention gives for one head, and what a dense softmax gives.
template <class T>
struct Run {
  Run(const Logits<T>& lower, const Logits<T>* upper, index_t columns, index_t channels,
      std::vector<T> values, int threads = 2)
      : rows(lower.rows),
        dim(channels),
        value(std::move(values)),
        out(static_cast<std::size_t>(rows * dim), T(77)),
        lse(static_cast<std::size_t>(rows), T(77)) {
    const BasisView<T> above = upper != nullptr ? upper->view(columns) : BasisView<T>{};
    report = conv_attention<T>(lower.view(columns), upper != nullptr ? &above : nullptr,
                               contiguous_view<const T, 4>(value.data(), {1, 1, columns, dim}),
                               contiguous_view<T, 4>(out.data(), {1, 1, rows, dim}),
                               contiguous_view<T, 3>(lse.data(), {1, 1, rows}), {}, {threads});
    for (index_t i = 0; i < rows; ++i) {
      const index_t visible = upper != nullptr ? columns : std::min(i + 1, columns);
      std::vector<long double> logits;
      for (index_t j = 0; j < visible; ++j)
        logits.push_back(j <= i ? lower(i, j) : (*upper)(rows - 1 - i, rows - 1 - j));
      add_row(logits);
    }
  }

  void add_row(const std::vector<long double>& logits) {
    const long double top = *std::max_element(logits.begin(), logits.end());
    long double sum = 0;
    std::vector<long double> mean(static_cast<std::size_t>(dim)), size = mean;
    for (std::size_t j = 0; j < logits.size(); ++j) {
      const long double weight = std::exp(logits[j] - top);
      sum += weight;
      for (std::size_t c = 0; c < mean.size(); ++c) {
        const long double term = weight * value[j * mean.size() + c];
        mean[c] += term;
        size[c] += std::abs(term);
      }
    }
    for (long double& number : mean) want.push_back(number / sum);
    sizes.push_back(*std::max_element(size.begin(), size.end()) / sum);
    want_lse.push_back(top + std::log(sum));
  }

  /// Largest over rows of |error| / |A| |v|, the size that a softmax output can be judged by.
  [[nodiscard]] double worst_error() const { return worst(out); }
  [[nodiscard]] double worst_of_zeros() const { return worst(std::vector<T>(out.size(), T(0))); }
  /// Largest over rows of |error|_2 / |row|_2.
  [[nodiscard]] double worst_row_error() const {
    double most = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      long double error = 0, size = 0;
      for (std::size_t at = i * static_cast<std::size_t>(dim);
           at < (i + 1) * static_cast<std::size_t>(dim); ++at) {
        error += std::pow(static_cast<long double>(out[at]) - want[at], 2);
        size += want[at] * want[at];
      }
      most = larger(most, static_cast<double>(std::sqrt(error / size)));
    }
    return most;
  }
  [[nodiscard]] double worst_lse_error() const {
    double most = 0;
    for (std::size_t i = 0; i < lse.size(); ++i)
      most = larger(most,
                    static_cast<double>(std::abs(static_cast<long double>(lse[i]) - want_lse[i]) /
                                        (1 + std::abs(want_lse[i]))));
    return most;
  }

  index_t rows, dim;
  std::vector<T> value, out, lse;
  std::vector<long double> want, sizes, want_lse;
  ForwardReport report;

 private:
  [[nodiscard]] double worst(const std::vector<T>& got) const {
    double most = 0;
    for (std::size_t at = 0; at < got.size(); ++at)
      most =
          larger(most, static_cast<double>(std::abs(static_cast<long double>(got[at]) - want[at]) /
                                           sizes[at / static_cast<std::size_t>(dim)]));
    return most;
  }
};

/// Direct sums of n terms: a random walk of roundings, and two of an exponential.
template <class T>
double tolerance(index_t n) {
  return kEps<T> * (std::sqrt(static_cast<double>(n)) + 4);
}

template <class T>
void check_light(const Logits<T>& lower, const Logits<T>* upper, index_t columns, index_t dim) {
  const Run<T> run(lower, upper, columns, dim, random_numbers<T>(columns * dim, 1, 5));
  CHECK_NEAR(run.worst_error(), 0.0, tolerance<T>(lower.rows));
  CHECK(run.worst_of_zeros() > 0.05);
  CHECK_NEAR(run.worst_lse_error(), 0.0, 4 * kEps<T>);
}

constexpr index_t kSizes[] = {1, 2, 3, 5, 7, 16, 17, 33, 63, 65, 97, 130, 701};

}  // namespace

TEST(causal_attention_matches_a_dense_softmax) {
  const auto check = []<class T>(T) {
    for (const index_t n : kSizes) {
      for (const index_t dim : {1, 3, 16}) {
        if (n > 200 && dim != 16) continue;
        check_light(Logits<T>(n, {0}, 1, 1), static_cast<Logits<T>*>(nullptr), n, dim);
        check_light(Logits<T>(n, {n / 2}, 1, 2), static_cast<Logits<T>*>(nullptr), n, dim);
        check_light(Logits<T>(n, {n / 3, n - 1}, 1, 3), static_cast<Logits<T>*>(nullptr), n - n / 4,
                    dim);  // the last start may lie past the columns
      }
    }
    check_light(Logits<T>(701, {0, 1, 64, 65, 300}, 1, 4), static_cast<Logits<T>*>(nullptr), 600,
                8);
    check_light(Logits<T>(40, {}, 1, 4), static_cast<Logits<T>*>(nullptr), 40, 2);  // a plain mean
  };
  check(float());
  check(double());
}

TEST(full_attention_adds_both_triangles) {
  const auto check = []<class T>(T) {
    for (const index_t n : kSizes) {
      const Logits<T> lower(n, {n / 4, n / 2 + n / 4}, 1, 6), upper(n, {n / 3}, 1, 7);
      const Logits<T> one(n, {0}, 1, 8), none(n, {}, 1, 9);
      check_light(lower, &upper, n, 3);
      check_light(one, &one, n, 3);
      check_light(none, &one, n, 3);
      check_light(one, &none, n, 3);
    }
  };
  check(float());
  check(double());
}

TEST(heavy_logits_are_right_in_every_row) {
  constexpr index_t kRows = 1000, kDim = 16;
  for (const unsigned seed : {1, 2, 3}) {
    const Logits<float> lower(kRows, {0, 300, 700}, 8, seed), upper(kRows, {0}, 8, seed + 10);
    for (const bool is_causal : {true, false}) {
      const Run<float> run(lower, is_causal ? nullptr : &upper, kRows, kDim,
                           random_numbers<float>(kRows * kDim, 1, seed + 20));
      CHECK(run.report.block_lengths.back() < kRows);  // FFTs were used
      CHECK_NEAR(run.worst_row_error(), 0.0, 1e-4);
      CHECK(run.report.rows_exact[0] > 0 && run.report.rows_exact[0] <= kRows);
      CHECK(run.report.rounding_bound[0] > 0 && run.report.rounding_bound[0] < 1e-4);
      CHECK_NEAR(run.worst_lse_error(), 0.0, 4 * kEps<float>);
    }
    const Logits<double> logits(kRows, {0, 300, 700}, 8, seed);
    const Run<double> run(logits, nullptr, kRows, kDim,
                          random_numbers<double>(kRows * kDim, 1, seed + 20));
    CHECK_NEAR(run.worst_row_error(), 0.0, 1e-11);
    CHECK(run.report.rounding_bound[0] > 0 && run.report.rounding_bound[0] < 1e-11);
  }
}

namespace {

/// Causal logits that depend on the lag alone: `levels[t]` of the step that lag t is in.
Logits<float> steps(index_t n, const std::vector<std::pair<index_t, float>>& levels) {
  Logits<float> logits(n, {0}, 0, 1);
  for (const auto& [from, level] : levels)
    std::fill(logits.kernels.begin() + from, logits.kernels.end(), level);
  return logits;
}

void check_steps(const Logits<float>& logits, double value_scale, index_t least_exact) {
  constexpr index_t kDim = 16;
  const Run<float> run(logits, nullptr, logits.rows, kDim,
                       random_numbers<float>(logits.rows * kDim, value_scale, 3));
  CHECK(run.report.block_lengths.back() < logits.rows);
  CHECK_NEAR(run.worst_row_error(), 0.0, 1e-4);
  CHECK_NEAR(run.worst_lse_error(), 0.0, 4 * kEps<float>);
  CHECK(run.report.rows_exact[0] >= least_exact);
}

}  // namespace

TEST(rows_whose_weights_underflow_are_summed_with_a_softmax_of_their_own) {
  check_steps(steps(700, {{0, -200.F}, {150, 0.F}}), 1, 150);  // weights are 0
  check_steps(steps(700, {{0, -100.F}, {150, 0.F}}), 1, 150);  // denormal or 0
  check_steps(steps(700, {{0, -84.F}, {150, 0.F}}), 1, 0);     // just above
}

TEST(rows_far_below_the_largest_weight_of_their_window_are_right) {
  // Rows before 150 see weights of 1e-33 alone; the FFT windows also hold 1e-23, whose squares
  // underflow in float.
  check_steps(steps(700, {{0, -76.F}, {150, -53.F}, {400, 0.F}}), 1, 1);
  check_steps(steps(700, {{0, -60.F}, {150, -46.F}, {400, 0.F}}), 1, 1);
}

TEST(the_size_of_the_values_does_not_matter) {
  for (const double size : {1e-20, 1e-12, 1.0, 1e12, 1e20})
    check_steps(steps(700, {{0, -16.F}, {150, 0.F}}), size, 1);
}

TEST(value_of_ones_gives_ones) {
  for (const double spread : {1.0, 8.0}) {
    const Run<float> run(Logits<float>(700, {0, 100, 333}, spread, 4), nullptr, 700, 4,
                         std::vector<float>(700 * 4, 1.F));
    CHECK_NEAR(run.worst_error(), 0.0, 1e-4);
  }
}

TEST(a_constant_added_to_all_logits_only_moves_lse) {
  const Logits<double> logits(700, {0, 100, 333}, 2, 4);
  Logits<double> moved = logits;
  for (double& logit : moved.kernels) logit += 500;  // exp(500) * n would be far from 1
  const std::vector<double> value = random_numbers<double>(700 * 4, 1, 5);
  const Run<double> run(logits, nullptr, 700, 4, value), other(moved, nullptr, 700, 4, value);
  double worst = 0, worst_lse = 0;
  for (std::size_t i = 0; i < run.out.size(); ++i)
    worst = larger(worst, std::abs(run.out[i] - other.out[i]));
  for (std::size_t i = 0; i < run.lse.size(); ++i)
    worst_lse = larger(worst_lse, std::abs(other.lse[i] - run.lse[i] - 500));
  CHECK_NEAR(worst, 0.0,
             500 * kEps<double> + tolerance<double>(700));  // logits were rounded at 500
  CHECK_NEAR(worst_lse, 0.0, 4 * 500 * kEps<double>);
}

TEST(later_values_leave_earlier_rows_bitwise) {
  for (const double spread : {1.0, 8.0}) {
    const Logits<float> logits(700, {0, 100, 333}, spread, 6);
    const std::vector<float> value = random_numbers<float>(700 * 8, 1, 7);
    const Run<float> run(logits, nullptr, 700, 8, value);
    for (const index_t change : {1, 64, 129, 320, 699}) {
      std::vector<float> other = value;
      std::transform(other.begin() + change * 8, other.end(), other.begin() + change * 8,
                     [](float x) { return 1000 * x + 1; });
      const Run<float> changed(logits, nullptr, 700, 8, other);
      CHECK(std::equal(run.out.begin(), run.out.begin() + change * 8, changed.out.begin()));
      CHECK(run.out[static_cast<std::size_t>(change * 8)] !=
            changed.out[static_cast<std::size_t>(change * 8)]);
    }
  }
}

TEST(threads_do_not_change_a_bit_of_attention) {
  const Logits<float> lower(700, {0, 100, 333}, 6, 6), upper(700, {0, 5}, 6, 7);
  const std::vector<float> value = random_numbers<float>(700 * 8, 1, 7);
  const Run<float> run(lower, &upper, 700, 8, value, 1);
  for (const int threads : {2, 5}) {
    const Run<float> again(lower, &upper, 700, 8, value, threads);
    CHECK(again.out == run.out && again.lse == run.lse);
    CHECK(again.report.rows_exact == run.report.rows_exact);
  }
}
