#include <algorithm>
#include <limits>

#include "convbasis/backward.h"
#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

/// Errors of the two devices' gradients; logits of ten or so lose as many roundings.
constexpr double kRoundings = 20;

struct Sizes {
  index_t batch, heads, kv_heads, rows, keys, dim, channels;
};

/// One gradient on the host and on the device, which holds other numbers before a call.
template <class E>
struct GradientArray {
  using T = Compute<E>;
  explicit GradientArray(const std::array<index_t, 4>& of_shape)
      : shape(of_shape),
        want(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]), T(9)),
        on_device(to_device(std::vector<E>(want.size(), element_from<E>(9)))) {}
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
    double square = 0, size = 1;
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

  std::array<index_t, 4> shape;
  std::vector<T> want;
  DeviceBuffer<E> on_device;
};

/// One call on the device and the same on the CPU, in the type that the device computes in.
template <class E>
struct Both {
  using T = Compute<E>;
  explicit Both(const Sizes& s, bool is_causal, std::span<const index_t> heads = {},
                double spread = 1)
      : grad_query({s.batch, s.heads, s.rows, s.dim}),
        grad_key({s.batch, s.kv_heads, s.keys, s.dim}),
        grad_value({s.batch, s.kv_heads, s.keys, s.channels}) {
    const std::array<index_t, 4> of_output{s.batch, s.heads, s.rows, s.channels};
    const RandomArray<E> query(s.batch * s.heads * s.rows * s.dim, 1, spread),
        key(s.batch * s.kv_heads * s.keys * s.dim, 2, spread),
        value(s.batch * s.kv_heads * s.keys * s.channels, 3),
        grad_output(s.batch * s.heads * s.rows * s.channels, 4);
    AttentionOptions options;
    options.is_causal = is_causal;
    options.scale = -0.3;
    const auto host = [](const RandomArray<E>& array, const std::array<index_t, 4>& shape) {
      return rows_first<const T>(array.numbers.data(), shape);
    };
    const auto device = [](const RandomArray<E>& array, const std::array<index_t, 4>& shape) {
      return rows_first<const E>(array.on_device.data(), shape);
    };
    convbasis::exact_attention_backward<T>(host(query, grad_query.shape), host(key, grad_key.shape),
                                           host(value, grad_value.shape),
                                           host(grad_output, of_output), grad_query.host(),
                                           grad_key.host(), grad_value.host(), options, heads, {1});
    cuda::exact_attention_backward<E>(
        device(query, grad_query.shape), device(key, grad_key.shape),
        device(value, grad_value.shape), device(grad_output, of_output), grad_query.device(),
        grad_key.device(), grad_value.device(), options, heads, kStream);
  }
  [[nodiscard]] double error() const {
    return larger(larger(grad_query.error(), grad_key.error()), grad_value.error());
  }

  GradientArray<E> grad_query, grad_key, grad_value;
};

template <class T>
bool all_are(const std::vector<T>& numbers, T number) {
  return std::all_of(numbers.begin(), numbers.end(), [&](T x) { return x == number; });
}

}  // namespace

TEST(gradients_match_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const index_t n : {1, 2, 63, 64, 65, 127, 300}) {
      CHECK_NEAR(Both<double>({2, 3, 3, n, n, 5, 3}, is_causal).error(), 0.0, kRoundings);
      CHECK_NEAR(Both<float>({1, 2, 2, n, n, 33, 70}, is_causal).error(), 0.0, kRoundings);
    }
}

TEST(long_sums_of_gradients_lose_little) {
  // Each addition of equal numbers errs in the same direction.
  const index_t rows = 32768;
  const DeviceBuffer<float> zeros = to_device(std::vector<float>(rows)), of_query(kStream, rows),
                            of_key(kStream, 1), of_value(kStream, 1);
  const DeviceBuffer<float> grads = to_device(std::vector<float>(rows, 0.1F));
  const std::array<index_t, 4> queries{1, 1, rows, 1}, keys{1, 1, 1, 1};
  const auto in = [](const DeviceBuffer<float>& array, const std::array<index_t, 4>& shape) {
    return contiguous_view<const float, 4>(array.data(), shape);
  };
  cuda::exact_attention_backward<float>(
      in(zeros, queries), in(zeros, keys), in(zeros, keys), in(grads, queries),
      contiguous_view<float, 4>(of_query.data(), queries),
      contiguous_view<float, 4>(of_key.data(), keys),
      contiguous_view<float, 4>(of_value.data(), keys), {}, {}, kStream);
  const double want = static_cast<double>(0.1F) * static_cast<double>(rows);
  CHECK_NEAR(static_cast<double>(to_host(of_value)[0]) / want, 1.0, 1e-5);
}

TEST(gradients_of_any_number_of_channels_match_the_cpu) {
  for (const index_t channels : {0, 1, 64, 65, 128, 129, 200}) {
    CHECK_NEAR(Both<float>({1, 2, 1, 70, 70, channels + 1, channels}, true).error(), 0.0,
               kRoundings);
    CHECK_NEAR(Both<double>({1, 2, 1, 70, 70, 201 - channels, channels}, false).error(), 0.0,
               kRoundings);
  }
}

TEST(gradients_of_different_numbers_of_queries_and_keys_match_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const auto& [rows, keys] :
         {std::pair<index_t, index_t>{1, 300}, {65, 2}, {2, 65}, {129, 64}, {64, 129}, {200, 70}})
      CHECK_NEAR(Both<double>({1, 4, 2, rows, keys, 4, 6}, is_causal).error(), 0.0, kRoundings);
}

TEST(gradients_by_shared_key_heads_match_the_cpu) {
  for (const index_t kv_heads : {1, 2, 3, 6})
    CHECK_NEAR(Both<double>({2, 6, kv_heads, 70, 90, 4, 3}, true).error(), 0.0, kRoundings);
}

TEST(a_sum_of_nothing_is_zero) {
  const Both<float> no_queries({1, 2, 1, 0, 5, 4, 3}, false), no_keys({1, 2, 1, 5, 0, 4, 3}, false);
  CHECK(all_are(no_queries.grad_key.got(), 0.0F) && all_are(no_queries.grad_value.got(), 0.0F));
  CHECK(all_are(no_keys.grad_query.got(), 0.0F));
  const Both<float> unseen({1, 1, 1, 3, 200, 4, 3}, true);  // keys behind all queries
  CHECK_NEAR(unseen.error(), 0.0, kRoundings);
  CHECK(unseen.grad_value.got().back() == 0);
}

TEST(gradients_of_long_and_peaked_rows_match_the_cpu) {
  CHECK_NEAR(Both<float>({1, 1, 1, 1100, 1100, 8, 2}, true).error(), 0.0, kRoundings);
  // Logits of hundreds, whose own rounding is what the weights have.
  CHECK_NEAR(Both<double>({1, 1, 1, 300, 300, 16, 3}, true, {}, 8).error(), 0.0, 2000.0);
}

TEST(gradients_of_heads_that_are_not_listed_are_left_untouched) {
  const std::vector<index_t> heads{7, 0, 6, 7};
  const Both<double> both({2, 4, 2, 66, 66, 3, 5}, true, heads);
  CHECK_NEAR(both.error(), 0.0, kRoundings);  // the CPU leaves them too
  // rows_first: heads lie side by side.
  CHECK(both.grad_query.got()[0] != 9 && both.grad_query.got()[3] == 9);
  CHECK(both.grad_key.got()[0] != 9 && both.grad_key.got()[3] == 9);
}

TEST(gradients_of_half_precision_are_rounded_once) {
  for (const bool is_causal : {false, true}) {
    CHECK_NEAR(Both<Float16>({1, 4, 2, 130, 130, 24, 9}, is_causal).error(), 0.0, 1.0);
    CHECK_NEAR(Both<BFloat16>({1, 4, 2, 130, 130, 24, 9}, is_causal).error(), 0.0, 1.0);
  }
}

TEST(a_logit_that_overflows_makes_gradients_nan) {
  std::vector<float> query(66, 1.0F), key(66, 1.0F), ones(66, 1.0F);
  query[65] = 1e30F;
  key[0] = 1e30F;
  const DeviceBuffer<float> q = to_device(query), k = to_device(key), x = to_device(ones);
  const DeviceBuffer<float> grad_query(kStream, 66), grad_key(kStream, 66), grad_value(kStream, 66);
  const auto in = [](const DeviceBuffer<float>& array) {
    return contiguous_view<const float, 4>(array.data(), {1, 1, 66, 1});
  };
  const auto out = [](const DeviceBuffer<float>& array) {
    return contiguous_view<float, 4>(array.data(), {1, 1, 66, 1});
  };
  AttentionOptions options;
  options.is_causal = true;
  cuda::exact_attention_backward<float>(in(q), in(k), in(x), in(x), out(grad_query), out(grad_key),
                                        out(grad_value), options, {}, kStream);
  CHECK(std::isnan(to_host(grad_query)[65]) && !std::isnan(to_host(grad_query)[64]));
  CHECK(std::isnan(to_host(grad_key)[3]) && std::isnan(to_host(grad_value)[3]));
}

TEST(a_backward_pass_on_the_device_refuses_what_does_not_fit) {
  const DeviceBuffer<float> x(kStream, 8);
  const auto in = contiguous_view<const float, 4>(x.data(), {1, 1, 4, 2});
  const auto out = contiguous_view<float, 4>(x.data(), {1, 1, 4, 2});
  const auto shorter = contiguous_view<float, 4>(x.data(), {1, 1, 3, 2});
  const auto run = [&](View<float, 4> grad_query, View<float, 4> grad_key,
                       View<float, 4> grad_value, const AttentionOptions& options) {
    cuda::exact_attention_backward<float>(in, in, in, in, grad_query, grad_key, grad_value, options,
                                          {}, kStream);
  };
  AttentionOptions masked;
  masked.mask = masks::SlidingWindow{2};
  CHECK_THROWS(run(out, out, out, masked), InvalidArgument,
               "[exact_attention_backward] mask is given; expected none");
  CHECK_THROWS(run(shorter, out, out, {}), InvalidArgument,
               "[exact_attention_backward] grad_query has shape (1, 1, 3, 2); expected");
  CHECK_THROWS(run(out, shorter, out, {}), InvalidArgument, "grad_key has shape");
  CHECK_THROWS(run(out, out, shorter, {}), InvalidArgument, "grad_value has shape");
}
