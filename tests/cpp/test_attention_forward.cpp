#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <type_traits>

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
      : rows(n), starts(std::move(first_columns)) {
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    count = static_cast<index_t>(starts.size());
    kernels = random_numbers<T>(count * n, spread, seed);
  }
  [[nodiscard]] BasisView<T> view(index_t columns) const {
    return {contiguous_view<const index_t, 3>(starts.data(), {1, 1, count}),
            contiguous_view<const index_t, 2>(&count, {1, 1}),
            contiguous_view<const T, 4>(kernels.data(), {1, 1, count, rows}), columns};
  }
  [[nodiscard]] T operator()(index_t i, index_t j) const {
    for (std::size_t r = starts.size(); r-- > 0;)
      if (j >= starts[r])
        return kernels[r * static_cast<std::size_t>(rows) + static_cast<std::size_t>(i - j)];
    return 0;
  }
  index_t rows;
  std::vector<index_t> starts;
  std::vector<T> kernels;
  index_t count = 0;
};

/// What conv_attention gives for one head, and on demand what a dense softmax gives.
template <class T>
struct Run {
  using Wide = std::conditional_t<sizeof(T) == 4, double, long double>;

  Run(const Logits<T>& below, const Logits<T>* above, index_t key_columns, index_t channels,
      std::vector<T> values, int threads = 2)
      : lower(below),
        upper(above),
        rows(below.rows),
        columns(key_columns),
        dim(channels),
        value(std::move(values)),
        out(static_cast<std::size_t>(rows * dim), T(77)),
        lse(static_cast<std::size_t>(rows), T(77)) {
    const BasisView<T> reversed = upper != nullptr ? upper->view(columns) : BasisView<T>{};
    report = conv_attention<T>(lower.view(columns), upper != nullptr ? &reversed : nullptr,
                               contiguous_view<const T, 4>(value.data(), {1, 1, columns, dim}),
                               contiguous_view<T, 4>(out.data(), {1, 1, rows, dim}),
                               contiguous_view<T, 3>(lse.data(), {1, 1, rows}), {}, {threads});
  }

  struct Errors {
    double entry = 0;     ///< largest |error| / |A| |v|, the size a softmax output is judged by
    double of_zeros = 0;  ///< the same of an output of zeros
    double row = 0;       ///< largest |error|_2 / |row|_2
    double lse = 0;       ///< largest error / (1 + the logits' and its own size)
  };
  [[nodiscard]] Errors errors() const {
    Errors errors;
    Wide largest_logit = 0;
    for (const T logit : lower.kernels)
      largest_logit = std::max(largest_logit, std::abs(Wide(logit)));
    for (index_t i = 0; i < rows; ++i) {
      const index_t visible = upper != nullptr ? columns : std::min(i + 1, columns);
      std::vector<Wide> logits(static_cast<std::size_t>(visible));
      Wide* to = logits.data();
      for (index_t j = 0; j < visible; ++j)
        to[j] = j <= i ? lower(i, j) : (*upper)(rows - 1 - i, rows - 1 - j);
      add_row(i, logits, 1 + largest_logit, errors);
    }
    return errors;
  }

  const Logits<T>& lower;
  const Logits<T>* upper;
  index_t rows, columns, dim;
  std::vector<T> value, out, lse;
  ForwardReport report;

 private:
  void add_row(index_t i, const std::vector<Wide>& logits, Wide lse_size, Errors& errors) const {
    const Wide top = *std::max_element(logits.begin(), logits.end());
    Wide sum = 0, row_error = 0, row_size = 0;
    const auto visible = static_cast<index_t>(logits.size());
    std::vector<Wide> weights(logits.size());
    Wide* weight = weights.data();
    for (index_t j = 0; j < visible; ++j)
      sum += weight[j] = std::exp(logits[static_cast<std::size_t>(j)] - top);
    for (index_t c = 0; c < dim; ++c) {
      Wide mean = 0, size = 0;
      const T* channel = value.data() + c;
      for (index_t j = 0; j < visible; ++j) {
        const Wide term = weight[j] * Wide(channel[j * dim]);
        mean += term;
        size += std::abs(term);
      }
      const Wide error = Wide(out[static_cast<std::size_t>(i * dim + c)]) - mean / sum;
      errors.entry = larger(errors.entry, static_cast<double>(std::abs(error) / (size / sum)));
      errors.of_zeros = larger(errors.of_zeros, static_cast<double>(std::abs(mean) / size));
      row_error += error * error;
      row_size += mean / sum * (mean / sum);
    }
    errors.row = larger(errors.row, static_cast<double>(std::sqrt(row_error / row_size)));
    const Wide want = top + std::log(sum), got = Wide(lse[static_cast<std::size_t>(i)]);
    errors.lse =
        larger(errors.lse, static_cast<double>(std::abs(got - want) / (lse_size + std::abs(want))));
  }
};

/// Direct sums of n terms: a random walk of roundings, and two of an exponential.
template <class T>
double tolerance(index_t n) {
  return kEps<T> * (std::sqrt(static_cast<double>(n)) + 4);
}

/// Exponentials in T, their sum in double.
template <class T>
double lse_tolerance(index_t n) {
  return 2 * kEps<T> + static_cast<double>(n) * 0x1p-53;
}

template <class T>
void check_light(const Logits<T>& lower, const Logits<T>* upper, index_t columns, index_t dim) {
  const auto errors =
      Run<T>(lower, upper, columns, dim, random_numbers<T>(columns * dim, 1, 5)).errors();
  CHECK_NEAR(errors.entry, 0.0, tolerance<T>(lower.rows));
  CHECK(errors.of_zeros > 0.05);
  CHECK_NEAR(errors.lse, 0.0, lse_tolerance<T>(lower.rows));
}

constexpr index_t kSizes[] = {1, 2, 3, 5, 7, 16, 17, 33, 63, 65, 97, 130, 601};

}  // namespace

TEST(causal_attention_matches_a_dense_softmax) {
  const auto check = []<class T>(T) {
    for (const index_t n : kSizes) {
      for (const index_t dim : {1, 3, 16}) {
        if (n > 200 && dim != 1) continue;
        check_light(Logits<T>(n, {0}, 1, 1), static_cast<Logits<T>*>(nullptr), n, dim);
        check_light(Logits<T>(n, {n / 2}, 1, 2), static_cast<Logits<T>*>(nullptr), n, dim);
        check_light(Logits<T>(n, {n / 3, n - 1}, 1, 3), static_cast<Logits<T>*>(nullptr), n - n / 4,
                    dim);  // the last start may lie past the columns
      }
    }
    check_light(Logits<T>(601, {0, 1, 64, 65, 300}, 1, 4), static_cast<Logits<T>*>(nullptr), 600,
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
      if (n > 200) continue;
      check_light(one, &one, n, 3);
      check_light(none, &one, n, 3);
      check_light(one, &none, n, 3);
    }
  };
  check(float());
  check(double());
}

TEST(heavy_logits_are_right_in_every_row) {
  constexpr index_t kRows = 600, kDim = 4;
  index_t rows_exact = 0;
  for (const unsigned seed : {1, 2, 3}) {
    const Logits<float> lower(kRows, {0, 200, 500}, 8, seed), upper(kRows, {0}, 8, seed + 10);
    for (const bool is_causal : {true, false}) {
      const Run<float> run(lower, is_causal ? nullptr : &upper, kRows, kDim,
                           random_numbers<float>(kRows * kDim, 1, seed + 20));
      CHECK(run.report.block_lengths.back() < kRows);  // FFTs were used
      const auto errors = run.errors();
      CHECK_NEAR(errors.row, 0.0, 1e-4);
      CHECK_NEAR(errors.lse, 0.0, lse_tolerance<float>(kRows));
      CHECK(run.report.rows_exact[0] >= 0 && run.report.rows_exact[0] < kRows);
      rows_exact += run.report.rows_exact[0];
      CHECK(run.report.rounding_bound[0] > 0 && run.report.rounding_bound[0] < 1e-4);
    }
    if (seed > 1) continue;
    const Logits<double> logits(kRows, {0, 200, 500}, 8, seed);
    const Run<double> run(logits, nullptr, kRows, kDim,
                          random_numbers<double>(kRows * kDim, 1, seed + 20));
    CHECK_NEAR(run.errors().row, 0.0, 1e-11);
    CHECK(run.report.rounding_bound[0] > 0 && run.report.rounding_bound[0] < 1e-11);
  }
  CHECK(rows_exact > 0);  // some rows need it, and are counted
}

TEST(value_of_ones_gives_ones) {
  for (const double spread : {1.0, 8.0}) {
    const Logits<float> logits(700, {0, 100, 333}, spread, 4);
    const Run<float> run(logits, nullptr, 700, 4, std::vector<float>(700 * 4, 1.F));
    for (const float mean : run.out) CHECK_NEAR(static_cast<double>(mean), 1.0, 1e-4);
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
      CHECK(spread > 1 || run.out[static_cast<std::size_t>(change * 8)] !=
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

TEST(values_in_any_layout_give_the_same_as_packed_ones) {
  // Logits of which some rows come from FFTs and others are summed directly.
  constexpr index_t kRows = 650, kDim = 16;
  Logits<float> logits(kRows, {0}, 1, 1);
  for (std::size_t lag = 0; lag < 150; ++lag) logits.kernels[lag] -= 30;
  const std::vector<float> stored = random_numbers<float>(kRows * kDim, 1, 2);
  const std::vector<std::array<index_t, 4>> layouts{{0, 0, kDim, 1},   // packed
                                                    {0, 0, -kDim, 1},  // backwards
                                                    {0, 0, 1, kRows},  // transposed
                                                    {0, 0, -1, -kRows},
                                                    {0, 0, 0, 1},   // one row for all
                                                    {0, 0, 2, 1}};  // overlapping
  for (const std::array<index_t, 4>& strides : layouts) {
    View<const float, 4> view{stored.data(), {1, 1, kRows, kDim}, strides};
    if (strides[2] < 0) view.data -= strides[2] * (kRows - 1);
    if (strides[3] < 0) view.data -= strides[3] * (kDim - 1);
    std::vector<float> packed;
    for (index_t j = 0; j < kRows; ++j)
      for (index_t c = 0; c < kDim; ++c) packed.push_back(view(0, 0, j, c));
    const Run<float> run(logits, nullptr, kRows, kDim, packed);
    CHECK(run.report.rows_exact[0] > 0 && run.report.rows_exact[0] < kRows);
    // Output and lse backwards.
    std::vector<float> out(kRows * kDim), lse(kRows);
    conv_attention<float>(logits.view(kRows), nullptr, view,
                          {&out.back(), {1, 1, kRows, kDim}, {0, 0, -kDim, -1}},
                          {&lse.back(), {1, 1, kRows}, {0, 0, -1}}, {}, {2});
    std::reverse(out.begin(), out.end());
    std::reverse(lse.begin(), lse.end());
    CHECK(out == run.out);
    CHECK(lse == run.lse);
  }
}

TEST(listed_heads_are_computed_and_others_left_alone) {
  constexpr index_t kRows = 40, kDim = 3, kBatch = 2, kHeads = 4, kValueHeads = 2;
  std::vector<Logits<double>> logits;
  std::vector<index_t> starts, counts(kBatch * kHeads, 1);
  std::vector<double> kernels;
  for (unsigned head = 0; head < kBatch * kHeads; ++head) {
    logits.emplace_back(kRows, std::vector<index_t>{head}, 1, head);
    starts.push_back(head);
    kernels.insert(kernels.end(), logits.back().kernels.begin(), logits.back().kernels.end());
  }
  const BasisView<double> basis{
      contiguous_view<const index_t, 3>(starts.data(), {kBatch, kHeads, 1}),
      contiguous_view<const index_t, 2>(counts.data(), {kBatch, kHeads}),
      contiguous_view<const double, 4>(kernels.data(), {kBatch, kHeads, 1, kRows}), kRows};
  const std::vector<double> value =
      random_numbers<double>(kBatch * kValueHeads * kRows * kDim, 1, 9);
  for (const std::vector<index_t>& listed :
       {std::vector<index_t>{}, std::vector<index_t>{5}, std::vector<index_t>{7, 0, 2}}) {
    std::vector<double> out(kBatch * kHeads * kRows * kDim, 77), lse(kBatch * kHeads * kRows, 77);
    const ForwardReport report = conv_attention<double>(
        basis, nullptr,
        contiguous_view<const double, 4>(value.data(), {kBatch, kValueHeads, kRows, kDim}),
        contiguous_view<double, 4>(out.data(), {kBatch, kHeads, kRows, kDim}),
        contiguous_view<double, 3>(lse.data(), {kBatch, kHeads, kRows}), listed, {2});
    CHECK(report.rows_exact == std::vector<index_t>(kBatch * kHeads, 0));
    CHECK(report.block_lengths == std::vector<index_t>{64});
    for (index_t head = 0; head < kBatch * kHeads; ++head) {
      const auto from = value.begin() + head / 2 * kRows * kDim;  // query heads share in pairs
      const Run<double> run(logits[static_cast<std::size_t>(head)], nullptr, kRows, kDim,
                            {from, from + kRows * kDim});
      const bool is_listed =
          listed.empty() || std::find(listed.begin(), listed.end(), head) != listed.end();
      const auto at = out.begin() + head * kRows * kDim;
      CHECK(std::equal(run.out.begin(), run.out.end(), at) == is_listed);
      CHECK((std::count(at, at + kRows * kDim, 77.0) == kRows * kDim) != is_listed);
      CHECK((lse[static_cast<std::size_t>(head * kRows)] == 77) != is_listed);
    }
  }
}

TEST(rows_without_keys_and_empty_arrays) {
  const Logits<float> logits(5, {0}, 1, 1);
  const Run<float> no_keys(logits, nullptr, 0, 2, {});
  CHECK(no_keys.out == std::vector<float>(10, 0.F));
  CHECK(no_keys.lse == std::vector<float>(5, -std::numeric_limits<float>::infinity()));
  const Run<float> no_channels(logits, nullptr, 5, 0, {});
  const Run<float> one_channel(logits, nullptr, 5, 1, std::vector<float>(5, 1.F));
  for (std::size_t i = 0; i < 5; ++i)
    CHECK_NEAR(no_channels.lse[i], one_channel.lse[i], 4 * std::numeric_limits<float>::epsilon());
  const Logits<float> nothing(0, {}, 1, 1);
  CHECK(Run<float>(nothing, nullptr, 0, 2, {}).out.empty());
  const Run<float> zeros(logits, nullptr, 5, 2, std::vector<float>(10, 0.F));
  CHECK(zeros.out == std::vector<float>(10, 0.F));
}

TEST(listed_rows_match_the_rows_of_the_whole) {
  constexpr index_t kRows = 300, kDim = 5, kListed = 6;
  const Logits<double> lower(kRows, {0, 90, 250}, 2, 6), upper(kRows, {4}, 2, 7);
  const std::vector<double> value = random_numbers<double>(kRows * kDim, 1, 8);
  const std::vector<index_t> rows{299, 0, 90, 17, 90, 130};
  for (const bool is_causal : {true, false}) {
    const Run<double> run(lower, is_causal ? nullptr : &upper, kRows, kDim, value);
    std::vector<double> out(kListed * kDim, 77);
    const BasisView<double> reversed = upper.view(kRows);
    conv_attention_rows<double>(lower.view(kRows), is_causal ? nullptr : &reversed,
                                contiguous_view<const double, 4>(value.data(), {1, 1, kRows, kDim}),
                                contiguous_view<const index_t, 3>(rows.data(), {1, 1, kListed}),
                                {&out.back(), {1, 1, kListed, kDim}, {0, 0, -kDim, -1}}, {}, {2});
    std::reverse(out.begin(), out.end());
    for (index_t r = 0; r < kListed; ++r)
      for (index_t c = 0; c < kDim; ++c) {
        const double want =
            run.out[static_cast<std::size_t>(rows[static_cast<std::size_t>(r)] * kDim + c)];
        CHECK_NEAR(out[static_cast<std::size_t>(r * kDim + c)], want, tolerance<double>(kRows));
        CHECK(std::abs(want) > 1e-6);
      }
  }
}
