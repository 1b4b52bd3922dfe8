#include <algorithm>
#include <limits>

#include "convbasis/attention.h"
#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "convbasis/logit_range.h"
#include "convbasis/polynomial.h"
#include "cuda/monomials.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

struct Sizes {
  index_t batch, heads, kv_heads, rows, keys, dim, channels;
};

double difference(const auto& a, const auto& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i])  // also the same infinity
      worst = larger(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

/// Inputs whose logits are small, polynomials of several degrees, and one call on the device.
template <class E>
struct Problem {
  using T = Compute<E>;
  Problem(const Sizes& sizes, bool is_causal, double spread = 0.5)
      : s(sizes),
        query(s.batch * s.heads * s.rows * s.dim, 1, spread),
        key(s.batch * s.kv_heads * s.keys * s.dim, 2, spread),
        value(s.batch * s.kv_heads * s.keys * s.channels, 3) {
    options.is_causal = is_causal;
    for (index_t head = 0; head < s.batch * s.heads; ++head) {
      HeadPolynomial polynomial{{1, 1, 0.5}, {}, {}, {}};
      if (head % 3 == 1) polynomial.coefficients = {1, 0.9, 0.4, 0.2, 0.1};
      if (head % 2 == 1) polynomial.centre = normal_numbers<double>(s.dim, 4, 0.3);
      polynomials.push_back(std::move(polynomial));
    }
    const auto count = static_cast<std::size_t>(s.batch * s.heads * s.rows);
    want.assign(count * static_cast<std::size_t>(s.channels), T(9));
    want_lse.assign(count, T(9));
  }
  [[nodiscard]] std::array<index_t, 4> of_query() const {
    return {s.batch, s.heads, s.rows, s.dim};
  }
  [[nodiscard]] std::array<index_t, 4> of_key() const {
    return {s.batch, s.kv_heads, s.keys, s.dim};
  }
  [[nodiscard]] std::array<index_t, 4> of_value() const {
    return {s.batch, s.kv_heads, s.keys, s.channels};
  }
  [[nodiscard]] std::array<index_t, 4> of_out() const {
    return {s.batch, s.heads, s.rows, s.channels};
  }
  void run(std::span<const index_t> heads = {}) {
    const DeviceBuffer<E> out = to_device(std::vector<E>(want.size(), element_from<E>(9)));
    const DeviceBuffer<T> lse = to_device(std::vector<T>(want_lse.size(), T(9)));
    cuda::polynomial_attention<E>(rows_first<const E>(query.on_device.data(), of_query()),
                                  contiguous_view<const E, 4>(key.on_device.data(), of_key()),
                                  rows_first<const E>(value.on_device.data(), of_value()),
                                  rows_first<E>(out.data(), of_out()),
                                  contiguous_view<T, 3>(lse.data(), {s.batch, s.heads, s.rows}),
                                  polynomials, options, heads, kStream);
    got.clear();
    for (const E element : to_host(out)) got.push_back(number_of(element));
    got_lse = to_host(lse);
  }
  /// The largest difference to the CPU's results, of output and lse.
  [[nodiscard]] double error(std::span<const index_t> heads = {}) {
    run(heads);
    convbasis::polynomial_attention<T>(
        rows_first<const T>(query.numbers.data(), of_query()),
        contiguous_view<const T, 4>(key.numbers.data(), of_key()),
        rows_first<const T>(value.numbers.data(), of_value()), rows_first<T>(want.data(), of_out()),
        contiguous_view<T, 3>(want_lse.data(), {s.batch, s.heads, s.rows}), polynomials, options,
        heads, {1});
    return larger(difference(got, want), difference(got_lse, want_lse));
  }

  Sizes s;
  RandomArray<E> query, key, value;
  AttentionOptions options;
  std::vector<HeadPolynomial> polynomials;
  std::vector<T> want, want_lse, got, got_lse;
};

}  // namespace

TEST(monomials_are_listed_once_with_their_multinomials) {
  for (const auto& [dim, degree] :
       {std::pair<index_t, index_t>{1, 0}, {3, 0}, {1, 7}, {5, 1}, {3, 4}, {20, 2}}) {
    const Monomials monomials(dim, degree, kStream);
    const MonomialTable& table = monomials.table();
    const auto on_host = [](const auto* data, index_t count) {
      std::vector<std::remove_cvref_t<decltype(*data)>> host(static_cast<std::size_t>(count));
      copy(kStream, host.data(), data, host.size() * sizeof(*data));
      synchronize(kStream);
      return host;
    };
    const auto factors = on_host(table.factors, table.slots * table.padded);
    const auto degrees = on_host(table.degrees, table.padded);
    const auto multinomials = on_host(table.multinomials, table.padded);
    CHECK(table.padded % Monomials::kFeatureMultiple == 0);
    // (1 + x . y)^p summed over p, by features.
    auto x = normal_numbers<double>(dim, 1, 0.7), y = normal_numbers<double>(dim, 2, 0.7);
    double dot = 0, want = 0, got = 0;
    for (std::size_t c = 0; c < x.size(); ++c) dot += x[c] * y[c];
    for (index_t p = 0; p <= degree; ++p) want += std::pow(dot, p);
    x.push_back(1);
    y.push_back(1);
    for (index_t f = 0; f < table.padded; ++f) {
      double product = multinomials[static_cast<std::size_t>(f)];
      index_t variables = 0;
      for (index_t slot = 0; slot < table.slots; ++slot) {
        const auto v =
            static_cast<std::size_t>(factors[static_cast<std::size_t>(slot * table.padded + f)]);
        product *= x[v] * y[v];
        variables += v < static_cast<std::size_t>(dim) ? 1 : 0;
      }
      got += product;
      CHECK(degrees[static_cast<std::size_t>(f)] == variables);
    }
    CHECK_NEAR(got, want, 1e-12);
  }
}

TEST(polynomial_attention_matches_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const index_t n : {1, 2, 63, 65, 255, 256, 257, 600}) {
      CHECK_NEAR(Problem<double>({2, 4, 2, n, n, 3, 5}, is_causal).error(), 0.0, 1e-12);
      CHECK_NEAR(Problem<float>({1, 3, 1, n, n, 4, 20}, is_causal).error(), 0.0, 2e-5);
    }
}

TEST(channels_and_variables_of_any_number_match_the_cpu) {
  for (const index_t channels : {0, 1, 16, 17, 32, 33, 64, 65, 130})
    for (const bool is_causal : {false, true}) {
      CHECK_NEAR(Problem<float>({1, 2, 1, 300, 300, 6, channels}, is_causal).error(), 0.0, 2e-5);
      CHECK_NEAR(Problem<double>({1, 2, 1, 300, 300, 2, channels}, is_causal).error(), 0.0, 1e-12);
    }
  for (const index_t dim : {1, 33, 70}) {
    Problem<float> wide({1, 1, 1, 270, 270, dim, 9}, true);
    CHECK_NEAR(wide.error(), 0.0, 2e-5);
  }
}

TEST(queries_and_keys_of_different_number_match_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const auto& [rows, keys] : {std::pair<index_t, index_t>{1, 300},
                                     {700, 2},
                                     {2, 700},
                                     {700, 257},
                                     {257, 700},
                                     {7, 0}}) {
      Problem<double> problem({1, 4, 2, rows, keys, 4, 6}, is_causal);
      CHECK_NEAR(problem.error(), 0.0, 1e-12);
      if (keys == 0) CHECK(problem.got[0] == 0 && problem.got_lse[0] == -INFINITY);
    }
}

TEST(many_chunks_match_the_cpu) {
  // Degree 1 with one variable: short chunks, many of them.
  Problem<float> many({1, 1, 1, 5000, 5000, 1, 2}, true);
  CHECK_NEAR(many.error(), 0.0, 1e-4);
  Problem<float> total({1, 1, 1, 5000, 5000, 1, 2}, false);
  CHECK_NEAR(total.error(), 0.0, 1e-4);
}

TEST(any_degree_and_scale_match_the_cpu) {
  for (const index_t degree : {0, 1, 7, 40}) {
    Problem<double> problem({1, 1, 1, 300, 300, 2, 3}, true);
    problem.polynomials[0].coefficients = exp_polynomial(degree, 2.0).coefficients;
    CHECK_NEAR(problem.error(), 0.0, 1e-10);
    problem.options.scale = -0.3;
    CHECK_NEAR(problem.error(), 0.0, 1e-10);
  }
}

TEST(numbers_far_from_1_match_the_cpu) {
  Problem<float> problem({1, 1, 1, 300, 300, 3, 4}, true);
  for (float& number : problem.value.numbers) number *= 0x1p120F;
  problem.value.on_device = to_device(problem.value.numbers);
  for (float& number : problem.query.numbers) number *= 0x1p90F;
  problem.query.on_device = to_device(problem.query.numbers);
  for (float& number : problem.key.numbers) number *= 0x1p-90F;
  problem.key.on_device = to_device(problem.key.numbers);
  CHECK(problem.error() <= 2e-5 * 0x1p120);
}

TEST(output_errs_within_the_bound_of_the_polynomial) {
  for (const bool is_causal : {false, true}) {
    Problem<float> problem({1, 2, 1, 400, 400, 4, 8}, is_causal);
    const LogitRange range = cuda::logit_range<float>(
        rows_first<const float>(problem.query.on_device.data(), problem.of_query()),
        contiguous_view<const float, 4>(problem.key.on_device.data(), problem.of_key()),
        problem.options, kStream);
    double worst = 0;
    for (std::size_t head = 0; head < 2; ++head) {
      const ExpPolynomial chosen = exp_polynomial(5, range.radius[head]);
      problem.polynomials[head] = {chosen.coefficients, range.centre, {}, {}};
      worst = std::max(worst, total_error(chosen, 0x1p-24, false));
    }
    CHECK(worst < 0.1);
    problem.run();
    std::vector<double> wide[3];
    const RandomArray<float>* arrays[] = {&problem.query, &problem.key, &problem.value};
    for (std::size_t i = 0; i < 3; ++i)
      wide[i].assign(arrays[i]->numbers.begin(), arrays[i]->numbers.end());
    std::vector<double> want(problem.got.size());
    convbasis::exact_attention<double>(
        rows_first<const double>(wide[0].data(), problem.of_query()),
        contiguous_view<const double, 4>(wide[1].data(), problem.of_key()),
        rows_first<const double>(wide[2].data(), problem.of_value()),
        rows_first<double>(want.data(), problem.of_out()), {}, problem.options, {}, {1});
    double largest = 0;
    for (const double number : wide[2]) largest = std::max(largest, std::abs(number));
    CHECK(difference(problem.got, want) <= 2 * worst / (1 - worst) * largest);
  }
}

TEST(rows_that_are_listed_or_without_positive_weight_are_exact) {
  for (const bool is_causal : {false, true}) {
    Problem<float> problem({1, 2, 2, 300, 300, 3, 20}, is_causal);
    problem.polynomials[0].exact_rows = {0, 7, 299};
    problem.polynomials[1].coefficients = {-1, 0.1};
    CHECK_NEAR(problem.error(), 0.0, 2e-5);
  }
}

TEST(later_keys_do_not_change_earlier_rows) {
  Problem<float> problem({1, 1, 1, 600, 600, 3, 7}, true);
  problem.run();
  const std::vector<float> before = problem.got;
  for (std::size_t i = 500 * 3; i < 600 * 3; ++i) problem.key.numbers[i] *= 0.5F;
  problem.key.on_device = to_device(problem.key.numbers);
  problem.run();
  CHECK(std::equal(before.begin(), before.begin() + 500 * 7, problem.got.begin()));
  CHECK(!std::equal(before.begin(), before.end(), problem.got.begin()));
}

TEST(heads_of_polynomials_that_are_not_listed_are_left_untouched) {
  const std::vector<index_t> heads{6, 1, 3};
  Problem<float> problem({2, 4, 2, 66, 66, 3, 5}, true);
  CHECK_NEAR(problem.error(heads), 0.0, 2e-5);
  CHECK(problem.got_lse[0] == 9 && problem.got_lse[66] != 9);
}

TEST(half_precision_polynomial_attention_is_rounded_once) {
  CHECK_NEAR(Problem<Float16>({1, 4, 2, 300, 300, 4, 9}, true).error(), 0.0, 0x1p-11 * 4);
  CHECK_NEAR(Problem<BFloat16>({1, 4, 2, 300, 300, 4, 9}, false).error(), 0.0, 0x1p-8 * 4);
}

TEST(polynomials_that_a_gpu_does_not_take_are_refused) {
  Problem<float> problem({1, 1, 1, 4, 4, 2, 2}, true);
  problem.options.mask = masks::SlidingWindow{2};
  CHECK_THROWS(problem.run(), InvalidArgument,
               "[polynomial_attention] mask is given; expected none");
  problem.options.mask = {};
  problem.polynomials[0].exact_columns = {1};
  CHECK_THROWS(problem.run(), InvalidArgument,
               "polynomials hold exact columns; expected none on a GPU; got 1");
  problem.polynomials[0].exact_columns = {};
  problem.polynomials[0].coefficients.assign(42, 1.0);
  CHECK_THROWS(problem.run(), InvalidArgument, "one of degree 41; expected at most 40");
  problem.polynomials.clear();
  CHECK_THROWS(problem.run(), InvalidArgument, "polynomials has 0 entries");
}
