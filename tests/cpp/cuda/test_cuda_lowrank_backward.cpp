#include <algorithm>
#include <limits>

#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "convbasis/polynomial.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

/// Errors of the two devices' gradients, which sum and scale in orders of their own.
constexpr double kRoundings = 20;

struct Sizes {
  index_t batch, heads, kv_heads, rows, keys, dim, channels;
};

/// One gradient on the host and on the device, both of which hold `before`.
template <class E>
struct GradientArray {
  using T = Compute<E>;
  GradientArray(const std::array<index_t, 4>& of_shape, double before)
      : shape(of_shape),
        want(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]), T(before)),
        on_device(to_device(std::vector<E>(want.size(), element_from<E>(before)))) {}
  [[nodiscard]] View<T, 4> host() { return rows_first<T>(want.data(), shape); }
  [[nodiscard]] View<E, 4> device() const { return rows_first<E>(on_device.data(), shape); }
  [[nodiscard]] std::vector<T> got() const {
    std::vector<T> numbers;
    for (const E element : to_host(on_device)) numbers.push_back(number_of(element));
    return numbers;
  }
  /// Of all numbers together, in roundings of the elements' type; NaN counts as infinite.
  [[nodiscard]] double error() const {
    const std::vector<T> numbers = got();
    double square = 0, size = least;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const double difference = static_cast<double>(numbers[i]) - static_cast<double>(want[i]);
      square += difference * difference;
      size += static_cast<double>(want[i]) * static_cast<double>(want[i]);
    }
    const double rounding = std::is_same_v<E, Float16>    ? 0x1p-11
                            : std::is_same_v<E, BFloat16> ? 0x1p-8
                                                          : std::numeric_limits<T>::epsilon();
    return larger(0, std::sqrt(square / size) / rounding);
  }

  double least = 1;  ///< square of what is 0 but for rounding, as a gradient of one key
  std::array<index_t, 4> shape;
  std::vector<T> want;
  DeviceBuffer<E> on_device;
};

/// Inputs whose logits are small, and polynomials of two degrees, with and without a centre.
template <class E>
struct Problem {
  using T = Compute<E>;
  Problem(const Sizes& sizes, bool is_causal, double spread = 0.5)
      : s(sizes),
        query(s.batch * s.heads * s.rows * s.dim, 1, spread),
        key(s.batch * s.kv_heads * s.keys * s.dim, 2, spread),
        value(s.batch * s.kv_heads * s.keys * s.channels, 3),
        grad_output(s.batch * s.heads * s.rows * s.channels, 4),
        grad_query({s.batch, s.heads, s.rows, s.dim}, 9),
        grad_key({s.batch, s.kv_heads, s.keys, s.dim}, 0.25),
        grad_value({s.batch, s.kv_heads, s.keys, s.channels}, 0.25) {
    options.is_causal = is_causal;
    for (index_t head = 0; head < s.batch * s.heads; ++head) {
      HeadPolynomial polynomial{exp_polynomial(4, 2.0).coefficients, {}, {}, {}};
      if (head % 3 == 1) polynomial.coefficients = exp_polynomial(2, 1.0).coefficients;
      if (head % 2 == 1) polynomial.centre = normal_numbers<double>(s.dim, 4, 0.1);
      polynomials.push_back(std::move(polynomial));
    }
  }
  /// Multiplies an input.
  static void scale(RandomArray<E>& array, T factor) {
    std::vector<E> elements;
    for (T& number : array.numbers) elements.push_back(element_from<E>(number *= factor));
    array.on_device = to_device(elements);
  }
  void run(std::span<const index_t> heads = {}) {
    const auto in = [](const RandomArray<E>& array, const std::array<index_t, 4>& shape) {
      return rows_first<const E>(array.on_device.data(), shape);
    };
    cuda::polynomial_attention_backward<E>(
        in(query, grad_query.shape), in(key, grad_key.shape), in(value, grad_value.shape),
        in(grad_output, of_output()), grad_query.device(), grad_key.device(), grad_value.device(),
        polynomials, options, heads, kStream);
  }
  [[nodiscard]] std::array<index_t, 4> of_output() const {
    return {s.batch, s.heads, s.rows, s.channels};
  }
  /// The largest error of the three gradients.
  [[nodiscard]] double error(std::span<const index_t> heads = {}) {
    run(heads);
    const auto in = [](const RandomArray<E>& array, const std::array<index_t, 4>& shape) {
      return rows_first<const T>(array.numbers.data(), shape);
    };
    convbasis::polynomial_attention_backward<T>(
        in(query, grad_query.shape), in(key, grad_key.shape), in(value, grad_value.shape),
        in(grad_output, of_output()), grad_query.host(), grad_key.host(), grad_value.host(),
        polynomials, options, heads, {1});
    return larger(larger(grad_query.error(), grad_key.error()), grad_value.error());
  }

  Sizes s;
  RandomArray<E> query, key, value, grad_output;
  AttentionOptions options;
  std::vector<HeadPolynomial> polynomials;
  GradientArray<E> grad_query, grad_key, grad_value;
};

}  // namespace

TEST(gradients_through_polynomials_match_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const index_t n : {1, 2, 63, 65, 256, 257, 600}) {
      CHECK_NEAR(Problem<double>({2, 4, 2, n, n, 3, 5}, is_causal).error(), 0.0, kRoundings);
      CHECK_NEAR(Problem<float>({1, 3, 1, n, n, 4, 7}, is_causal).error(), 0.0, kRoundings);
    }
}

TEST(gradients_of_any_number_of_channels_and_variables_match_the_cpu) {
  for (const auto& [dim, channels] :
       {std::pair<index_t, index_t>{1, 130}, {2, 0}, {5, 1}, {8, 8}, {20, 16}, {33, 3}, {70, 2}})
    for (const bool is_causal : {false, true}) {
      Problem<float> problem({1, 2, 1, 270, 270, dim, channels}, is_causal, 0.2);
      for (HeadPolynomial& polynomial : problem.polynomials) polynomial.coefficients = {1, 1, 0.5};
      CHECK_NEAR(problem.error(), 0.0, kRoundings);
    }
}

TEST(gradients_of_queries_and_keys_of_different_number_match_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const auto& [rows, keys] : {std::pair<index_t, index_t>{1, 300},
                                     {700, 2},
                                     {2, 700},
                                     {700, 257},
                                     {257, 700},
                                     {7, 0},
                                     {0, 7}})
      CHECK_NEAR(Problem<double>({1, 4, 2, rows, keys, 4, 6}, is_causal).error(), 0.0, kRoundings);
}

TEST(gradients_over_many_chunks_match_the_cpu) {
  for (const bool is_causal : {false, true})
    CHECK_NEAR(Problem<double>({1, 1, 1, 3000, 3000, 1, 2}, is_causal).error(), 0.0, kRoundings);
}

TEST(gradients_of_any_degree_and_scale_match_the_cpu) {
  for (const index_t degree : {0, 1, 7, 40}) {
    Problem<double> problem({1, 1, 1, 300, 300, 2, 3}, true);
    problem.polynomials[0].coefficients = exp_polynomial(degree, 2.0).coefficients;
    for (const double scale : {0.7, -0.3, 0.0}) {
      problem.options.scale = scale;
      CHECK_NEAR(problem.error(), 0.0, kRoundings);
    }
  }
}

TEST(gradients_of_numbers_far_from_1_match_the_cpu) {
  for (const float grads : {0x1p-60F, 0x1p-110F}) {
    Problem<float> problem({1, 1, 1, 300, 300, 3, 4}, true);
    Problem<float>::scale(problem.value, 0x1p110F);
    Problem<float>::scale(problem.grad_output, grads);
    Problem<float>::scale(problem.query, 0x1p30F);
    Problem<float>::scale(problem.key, 0x1p-30F);
    for (GradientArray<float>* grad :
         {&problem.grad_query, &problem.grad_key, &problem.grad_value}) {
      *grad = GradientArray<float>(grad->shape, 0);
      grad->least = std::numeric_limits<double>::min();
    }
    CHECK_NEAR(problem.error(), 0.0, kRoundings);
  }
}

TEST(gradients_of_small_values_by_small_weights_match_the_cpu) {
  // Rows' shares are as large as their weights are small, whatever values are.
  Problem<float> problem({1, 1, 1, 300, 300, 3, 4}, true);
  Problem<float>::scale(problem.value, 0x1p-110F);
  for (double& coefficient : problem.polynomials[0].coefficients) coefficient *= 0x1p-50;
  for (GradientArray<float>* grad : {&problem.grad_query, &problem.grad_key, &problem.grad_value}) {
    *grad = GradientArray<float>(grad->shape, 0);
    grad->least = std::numeric_limits<double>::min();
  }
  CHECK_NEAR(problem.error(), 0.0, kRoundings);
}

TEST(heads_with_exact_rows_or_without_positive_weight_are_differentiated_exactly) {
  for (const bool is_causal : {false, true}) {
    Problem<float> problem({1, 6, 2, 300, 300, 3, 20}, is_causal);
    problem.polynomials[0].exact_rows = {0, 7, 299};
    problem.polynomials[2].coefficients = {-1, 0.1};
    problem.polynomials[4].coefficients = {0.05, 1};  // of a few rows
    CHECK_NEAR(problem.error(), 0.0, kRoundings);
    problem.run();
    const std::vector<float> first = problem.grad_query.got();
    problem.run();
    CHECK(first == problem.grad_query.got());
  }
}

TEST(gradients_of_polynomials_that_are_not_listed_are_left_untouched) {
  const std::vector<index_t> heads{6, 1, 3, 6};
  Problem<double> problem({2, 4, 2, 66, 66, 3, 5}, true);
  CHECK_NEAR(problem.error(heads), 0.0, kRoundings);  // the CPU leaves them too
  CHECK(problem.grad_query.got()[0] == 9);
}

TEST(half_precision_gradients_through_polynomials_are_rounded_once) {
  CHECK_NEAR(Problem<Float16>({1, 4, 2, 300, 300, 4, 9}, true).error(), 0.0, 1.0);
  CHECK_NEAR(Problem<BFloat16>({1, 4, 2, 300, 300, 4, 9}, false).error(), 0.0, 1.0);
}

TEST(keys_that_no_query_sees_may_hold_anything) {
  Problem<float> problem({1, 2, 1, 65, 130, 3, 4}, true);
  for (RandomArray<float>* array : {&problem.key, &problem.value}) {
    const std::size_t width = array->numbers.size() / 130;
    std::fill(array->numbers.begin() + static_cast<std::ptrdiff_t>(65 * width),
              array->numbers.end(), std::numeric_limits<float>::quiet_NaN());
    array->on_device = to_device(array->numbers);
  }
  problem.run();
  for (const float number : problem.grad_query.got()) CHECK(std::isfinite(number));
  CHECK(problem.grad_key.got().back() == 0.25F && problem.grad_value.got().back() == 0.25F);
}

TEST(gradients_that_a_gpu_does_not_take_are_refused) {
  Problem<float> problem({1, 1, 1, 4, 4, 2, 2}, true);
  problem.options.mask = masks::SlidingWindow{2};
  CHECK_THROWS(problem.run(), InvalidArgument,
               "[polynomial_attention_backward] mask is given; expected none");
  problem.options.mask = {};
  problem.polynomials[0].exact_columns = {1};
  CHECK_THROWS(problem.run(), InvalidArgument, "expected none on a GPU; got 1");
  problem.polynomials[0].exact_columns = {};
  problem.polynomials[0].coefficients.assign(42, 1.0);
  CHECK_THROWS(problem.run(), InvalidArgument, "one of degree 41; expected at most 40");
  problem.polynomials.clear();
  CHECK_THROWS(problem.run(), InvalidArgument, "polynomials has 0 entries");
}
