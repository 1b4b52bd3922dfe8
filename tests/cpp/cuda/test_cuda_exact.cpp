#include <algorithm>
#include <limits>

#include "convbasis/attention.h"
#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

struct Sizes {
  index_t batch, heads, kv_heads, rows, keys, dim, channels;
};

/// One call on the device and the same on the CPU, in the type that the device computes in.
template <class E>
struct Both {
  using T = Compute<E>;
  explicit Both(const Sizes& s, bool is_causal, std::span<const index_t> heads = {},
                double spread = 1)
      : query(s.batch * s.heads * s.rows * s.dim, 1, spread),
        key(s.batch * s.kv_heads * s.keys * s.dim, 2, spread),
        value(s.batch * s.kv_heads * s.keys * s.channels, 3) {
    const std::array<index_t, 4> of_query{s.batch, s.heads, s.rows, s.dim};
    const std::array<index_t, 4> of_key{s.batch, s.kv_heads, s.keys, s.dim};
    const std::array<index_t, 4> of_value{s.batch, s.kv_heads, s.keys, s.channels};
    const std::array<index_t, 4> of_out{s.batch, s.heads, s.rows, s.channels};
    const std::array<index_t, 3> of_lse{s.batch, s.heads, s.rows};
    AttentionOptions options;
    options.is_causal = is_causal;
    const index_t count = s.batch * s.heads * s.rows;
    want.assign(static_cast<std::size_t>(count * s.channels), T(9));
    want_lse.assign(static_cast<std::size_t>(count), T(9));
    const DeviceBuffer<E> out = to_device(std::vector<E>(want.size(), element_from<E>(9)));
    const DeviceBuffer<T> lse = to_device(want_lse);
    convbasis::exact_attention<T>(
        rows_first<const T>(query.numbers.data(), of_query),
        contiguous_view<const T, 4>(key.numbers.data(), of_key),
        rows_first<const T>(value.numbers.data(), of_value), rows_first<T>(want.data(), of_out),
        contiguous_view<T, 3>(want_lse.data(), of_lse), options, heads, {1});
    cuda::exact_attention<E>(rows_first<const E>(query.on_device.data(), of_query),
                             contiguous_view<const E, 4>(key.on_device.data(), of_key),
                             rows_first<const E>(value.on_device.data(), of_value),
                             rows_first<E>(out.data(), of_out),
                             contiguous_view<T, 3>(lse.data(), of_lse), options, heads, kStream);
    for (const E element : to_host(out)) got.push_back(number_of(element));
    got_lse = to_host(lse);
  }
  /// Largest difference of outputs, which are means of normal numbers, and of lse.
  [[nodiscard]] double error() const { return difference(got, want); }
  [[nodiscard]] double lse_error() const { return difference(got_lse, want_lse); }

  RandomArray<E> query, key, value;
  std::vector<T> want, want_lse, got, got_lse;

 private:
  static double difference(const std::vector<T>& a, const std::vector<T>& b) {
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
      if (a[i] != b[i])  // also the same infinity
        worst = larger(worst, std::abs(static_cast<double>(a[i] - b[i])));
    return worst;
  }
};

}  // namespace

TEST(exact_attention_matches_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const index_t n : {1, 2, 63, 64, 65, 127, 300}) {
      const Both<double> wide({2, 4, 2, n, n, 5, 3}, is_causal);
      CHECK_NEAR(wide.error(), 0.0, 1e-13);
      CHECK_NEAR(wide.lse_error(), 0.0, 1e-13);
      const Both<float> single({1, 3, 3, n, n, 33, 70}, is_causal);
      CHECK_NEAR(single.error(), 0.0, 4e-6);
      CHECK_NEAR(single.lse_error(), 0.0, 4e-6);
    }
}

TEST(long_sums_lose_little) {
  // Each addition of equal numbers errs in the same direction.
  const index_t keys = 32768;
  const DeviceBuffer<float> zeros = to_device(std::vector<float>(keys)), out(kStream, 1);
  const DeviceBuffer<float> value = to_device(std::vector<float>(keys, 0.1F));
  cuda::exact_attention<float>(contiguous_view<const float, 4>(zeros.data(), {1, 1, 1, 1}),
                               contiguous_view<const float, 4>(zeros.data(), {1, 1, keys, 1}),
                               contiguous_view<const float, 4>(value.data(), {1, 1, keys, 1}),
                               contiguous_view<float, 4>(out.data(), {1, 1, 1, 1}), {}, {}, {},
                               kStream);
  CHECK_NEAR(static_cast<double>(to_host(out)[0]) / static_cast<double>(0.1F), 1.0, 1e-5);
}

TEST(channels_of_any_number_match_the_cpu) {
  for (const index_t channels : {0, 1, 64, 65, 128, 129, 200}) {
    const Both<float> single({1, 2, 1, 70, 70, channels + 1, channels}, true);
    CHECK_NEAR(single.error(), 0.0, 4e-6);
    CHECK_NEAR(single.lse_error(), 0.0, 4e-6);
    const Both<double> wide({1, 2, 1, 70, 70, channels + 1, channels}, false);
    CHECK_NEAR(wide.error(), 0.0, 1e-13);
    CHECK_NEAR(wide.lse_error(), 0.0, 1e-13);
  }
}

TEST(queries_and_keys_of_different_number_match_the_cpu) {
  for (const bool is_causal : {false, true})
    for (const auto& [rows, keys] :
         {std::pair<index_t, index_t>{1, 300}, {65, 2}, {2, 65}, {129, 64}, {64, 129}, {7, 0}}) {
      const Both<double> wide({1, 4, 2, rows, keys, 4, 6}, is_causal);
      CHECK_NEAR(wide.error(), 0.0, 1e-13);
      CHECK_NEAR(wide.lse_error(), 0.0, 1e-13);
      if (keys == 0) {
        CHECK(std::all_of(wide.got.begin(), wide.got.end(), [](double x) { return x == 0; }));
        CHECK(wide.got_lse[0] == -INFINITY);
      }
    }
}

TEST(long_and_peaked_rows_match_the_cpu) {
  const Both<float> far({1, 1, 1, 1100, 1100, 8, 2}, true);
  CHECK_NEAR(far.error(), 0.0, 4e-6);
  CHECK_NEAR(far.lse_error(), 0.0, 1e-5);
  // Logits of hundreds: the largest so far grows from tile to tile, others underflow.
  const Both<float> peaked({1, 1, 1, 300, 300, 16, 3}, true, {}, 8);
  CHECK_NEAR(peaked.error(), 0.0, 1e-3);
  CHECK_NEAR(peaked.lse_error(), 0.0, 1e-3);
  const Both<double> peaked_wide({1, 1, 1, 300, 300, 16, 3}, true, {}, 8);
  CHECK_NEAR(peaked_wide.error(), 0.0, 1e-11);
}

TEST(heads_that_are_not_listed_are_left_untouched) {
  const std::vector<index_t> heads{6, 1, 3};
  const Both<float> both({2, 4, 2, 66, 66, 3, 5}, true, heads);
  CHECK_NEAR(both.error(), 0.0, 4e-6);
  CHECK_NEAR(both.lse_error(), 0.0, 4e-6);
  CHECK(both.got_lse[0] == 9 && both.got_lse[66] != 9);
}

template <class E>
void check_half(const Sizes& sizes, bool is_causal, double rounding) {
  const Both<E> both(sizes, is_causal);
  // Weights of a mean are rounded, and the mean itself.
  CHECK_NEAR(both.error(), 0.0, 3 * rounding);
  CHECK_NEAR(both.lse_error(), 0.0, 6e-6);
}

TEST(half_precision_attention_matches_the_cpu) {
  for (const bool is_causal : {false, true}) {
    for (const index_t n : {1, 15, 16, 17, 63, 64, 65, 200})
      check_half<Float16>({1, 2, 1, n, n, 24, 9}, is_causal, 0x1p-11);
    // Rows of eight channels are read at once, others one by one.
    for (const index_t channels : {0, 1, 8, 64, 72, 128, 130, 136}) {
      check_half<Float16>({1, 2, 2, 70, 90, channels + 8, channels}, is_causal, 0x1p-11);
      check_half<BFloat16>({2, 4, 2, 90, 70, 264 - channels, channels}, is_causal, 0x1p-8);
    }
    check_half<BFloat16>({1, 1, 1, 3, 0, 8, 8}, is_causal, 0);
  }
}

TEST(half_precision_heads_that_are_not_listed_are_left_untouched) {
  const std::vector<index_t> heads{6, 1, 3};
  const Both<BFloat16> both({2, 4, 2, 66, 66, 16, 8}, true, heads);
  CHECK_NEAR(both.error(), 0.0, 3 * 0x1p-8);
  CHECK(both.got_lse[0] == 9 && both.got_lse[66] != 9);
}

TEST(a_row_with_a_logit_that_overflows_is_nan) {
  std::vector<float> query(66, 1.0F), key(66, 1.0F), value(66, 1.0F);
  query[65] = 1e30F;
  key[0] = 1e30F;
  const DeviceBuffer<float> q = to_device(query), k = to_device(key), v = to_device(value);
  const DeviceBuffer<float> out(kStream, 66);
  const std::array<index_t, 4> shape{1, 1, 66, 1};
  AttentionOptions options;
  options.is_causal = true;
  cuda::exact_attention<float>(contiguous_view<const float, 4>(q.data(), shape),
                               contiguous_view<const float, 4>(k.data(), shape),
                               contiguous_view<const float, 4>(v.data(), shape),
                               contiguous_view<float, 4>(out.data(), shape), {}, options, {},
                               kStream);
  const std::vector<float> got = to_host(out);
  CHECK(std::isnan(got[65]));
  for (std::size_t i = 0; i < 64; ++i) CHECK(got[i] == 1);
}

TEST(a_mask_and_shapes_that_do_not_fit_are_refused) {
  const DeviceBuffer<float> x(kStream, 8);
  const auto in = contiguous_view<const float, 4>(x.data(), {1, 1, 4, 2});
  const auto out = contiguous_view<float, 4>(x.data(), {1, 1, 4, 2});
  AttentionOptions options;
  options.mask = masks::SlidingWindow{2};
  CHECK_THROWS(cuda::exact_attention<float>(in, in, in, out, {}, options, {}, kStream),
               InvalidArgument, "[exact_attention] mask is given; expected none");
  const auto shorter = contiguous_view<float, 4>(x.data(), {1, 1, 3, 2});
  CHECK_THROWS(cuda::exact_attention<float>(in, in, in, shorter, {}, {}, {}, kStream),
               InvalidArgument,
               "[exact_attention] out has shape (1, 1, 3, 2); expected (1, 1, 4, 2)");
  const std::vector<index_t> heads{1};
  CHECK_THROWS(cuda::exact_attention<float>(in, in, in, out, {}, {}, heads, kStream),
               InvalidArgument, "[exact_attention] heads holds 1");
}
