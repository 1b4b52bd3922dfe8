#include <algorithm>

#include "convbasis/attention.h"
#include "convbasis/cuda.h"
#include "cuda/heads_forward.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

/// One call on the device and the same on the CPU.
template <class T>
struct Both {
  Both(const RandomBasis<T>& basis, index_t kv_heads, index_t channels, double value_size = 1,
       const std::vector<index_t>& heads = {}, const RandomBasis<T>* upper = nullptr)
      : value(
            normal_numbers<T>(basis.batch * kv_heads * basis.columns * channels, 21, value_size)) {
    const index_t b = basis.batch, h = basis.heads, n = basis.rows;
    const std::array<index_t, 4> in{b, kv_heads, basis.columns, channels},
        of_out{b, h, n, channels};
    const std::array<index_t, 3> of_lse{b, h, n};
    want.resize(static_cast<std::size_t>(b * h * n * channels));
    want_lse.resize(static_cast<std::size_t>(b * h * n));
    const BasisView<T> host_upper = upper ? upper->host() : BasisView<T>{};
    const BasisView<T> device_upper = upper ? upper->device() : BasisView<T>{};
    report = convbasis::conv_attention<T>(
        basis.host(), upper ? &host_upper : nullptr, contiguous_view<const T, 4>(value.data(), in),
        contiguous_view<T, 4>(want.data(), of_out), contiguous_view<T, 3>(want_lse.data(), of_lse),
        heads, {1});
    const DeviceBuffer<T> from = to_device(value), to = to_device(std::vector<T>(want.size()));
    const DeviceBuffer<T> lse = to_device(std::vector<T>(want_lse.size()));
    const DeviceBuffer<index_t> counts(kStream, b * h);
    cuda::conv_attention<T>(basis.device(), upper ? &device_upper : nullptr,
                            contiguous_view<const T, 4>(from.data(), in),
                            contiguous_view<T, 4>(to.data(), of_out),
                            contiguous_view<T, 3>(lse.data(), of_lse),
                            contiguous_view<index_t, 2>(counts.data(), {b, h}), heads, kStream);
    got = to_host(to);
    got_lse = to_host(lse);
    rows_exact = to_host(counts);
  }
  /// Largest difference, relative to the largest output.
  [[nodiscard]] double error() const {
    double worst = 0, size = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      worst = larger(worst, std::abs(static_cast<double>(got[i] - want[i])));
      size = std::max(size, std::abs(static_cast<double>(want[i])));
    }
    return worst / size;
  }
  [[nodiscard]] double lse_error() const {
    double worst = 0;
    for (std::size_t i = 0; i < got_lse.size(); ++i)
      worst = larger(worst, std::abs(static_cast<double>(got_lse[i] - want_lse[i])) /
                                (1 + std::abs(static_cast<double>(want_lse[i]))));
    return worst;
  }

  std::vector<T> value, want, want_lse, got, got_lse;
  std::vector<index_t> rows_exact;
  ForwardReport report;
};

}  // namespace

TEST(attention_matches_the_cpu) {
  for (const index_t n : {1, 2, 63, 64, 65, 127, 300, 1000})
    for (const index_t k : {1, 2, 17}) {
      const Both<double> wide(
          RandomBasis<double>(2, 4, k, n, n - n / 4, static_cast<unsigned>(n + k)), 2, 3);
      CHECK_NEAR(wide.error(), 0.0, 1e-12);
      CHECK_NEAR(wide.lse_error(), 0.0, 1e-13);
      const Both<float> single(RandomBasis<float>(1, 3, k, n, n, static_cast<unsigned>(n + k)), 3,
                               5);
      CHECK_NEAR(single.error(), 0.0, 4e-6);
      CHECK_NEAR(single.lse_error(), 0.0, 1e-6);
    }
}

TEST(long_attention_matches_the_cpu) {
  const Both<float> both(RandomBasis<float>(1, 1, 5, 4133, 4133, 3), 1, 4);
  CHECK_NEAR(both.error(), 0.0, 1e-5);
  CHECK(both.rows_exact[0] < 200);
}

TEST(rows_that_rounding_spoils_are_summed_directly) {
  // Logits of a wide range: the early weights of a kernel are nothing beside later ones.
  const Both<float> both(RandomBasis<float>(1, 2, 3, 4000, 4000, 5, 6), 2, 1);
  CHECK(both.rows_exact[0] > 0 && both.rows_exact[0] < 4000);
  CHECK_NEAR(both.error(), 0.0, 1e-4);
  CHECK_NEAR(both.lse_error(), 0.0, 1e-5);
  const Both<float> huge(RandomBasis<float>(1, 1, 3, 700, 700, 6), 1, 3, 1e38);
  CHECK_NEAR(huge.error(), 0.0, 1e-4);
  const Both<float> tiny(RandomBasis<float>(1, 1, 3, 700, 700, 7), 1, 3, 1e-36);
  CHECK_NEAR(tiny.error(), 0.0, 1e-4);
}

TEST(sums_that_spoiled_rows_have_too_spoil_no_row) {
  // Near entries of the paper's gradient, one block of them all.
  const index_t n = 6000, channels = 2;
  const RandomBasis<float> basis(1, 1, 3, n, n, 4);
  const DeviceBuffer<float> value = to_device(normal_numbers<float>(n * channels, 22, 1)),
                            out(kStream, n * channels);
  const Schedule near[] = {{{}, 8192}};
  const HeadsForward<float> forward =
      attend_heads<float>(triangles_of<float>(basis.device(), nullptr, {}, kStream),
                          packed_array(value.data(), 1, n, channels),
                          packed_array(out.data(), 1, n, channels), {}, true, near, kStream);
  const std::vector<std::int32_t> spoiled = to_host(forward.spoiled);
  CHECK(std::count(spoiled.begin(), spoiled.end(), 1) < n / 4);
}

TEST(attention_without_a_causal_mask_matches_the_cpu) {
  for (const index_t n : {1, 2, 63, 64, 65, 127, 300, 1000})
    for (const index_t k : {1, 2, 17}) {
      const auto seed = static_cast<unsigned>(n + k);
      const RandomBasis<double> above(2, 4, k + 1, n, n, seed + 9);
      const Both<double> wide(RandomBasis<double>(2, 4, k, n, n, seed), 2, 3, 1, {}, &above);
      CHECK_NEAR(wide.error(), 0.0, 1e-12);
      CHECK_NEAR(wide.lse_error(), 0.0, 1e-13);
      const RandomBasis<float> over(1, 3, k, n, n, seed + 9);
      const Both<float> single(RandomBasis<float>(1, 3, k, n, n, seed), 3, 5, 1, {}, &over);
      CHECK_NEAR(single.error(), 0.0, 4e-6);
      CHECK_NEAR(single.lse_error(), 0.0, 1e-6);
    }
}

TEST(rows_that_rounding_spoils_see_the_keys_after_them_too) {
  const RandomBasis<float> above(1, 4, 3, 2000, 2000, 15, 6);
  const Both<float> both(RandomBasis<float>(1, 4, 3, 2000, 2000, 5, 6), 2, 1, 1, {3, 0}, &above);
  CHECK(both.rows_exact[0] > 0 && both.rows_exact[0] < 2000 && both.rows_exact[1] == 0);
  CHECK_NEAR(both.error(), 0.0, 1e-4);
  CHECK_NEAR(both.lse_error(), 0.0, 1e-5);
}

TEST(rows_of_heads_that_are_not_listed_are_left_untouched) {
  const Both<double> both(RandomBasis<double>(1, 6, 5, 300, 260, 8, 6), 3, 3, 1, {5, 0});
  CHECK_NEAR(both.error(), 0.0, 1e-10);
  CHECK_NEAR(both.lse_error(), 0.0, 1e-12);
  for (const std::size_t unlisted : {1U, 2U, 3U, 4U}) {
    CHECK(both.got[unlisted * 300 * 3] == 0 && both.got_lse[unlisted * 300] == 0);
    CHECK(both.rows_exact[unlisted] == 0);
  }
}

TEST(no_key_gives_zeros) {
  const RandomBasis<double> basis(1, 1, 1, 5, 0, 1);
  const DeviceBuffer<double> out(kStream, 10), lse(kStream, 5);
  cuda::conv_attention<double>(basis.device(), nullptr,
                               contiguous_view<const double, 4>(nullptr, {1, 1, 0, 2}),
                               contiguous_view<double, 4>(out.data(), {1, 1, 5, 2}),
                               contiguous_view<double, 3>(lse.data(), {1, 1, 5}), {}, {}, kStream);
  for (const double value : to_host(out)) CHECK(value == 0);
  for (const double value : to_host(lse)) CHECK(value == -INFINITY);
}
