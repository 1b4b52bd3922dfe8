#include <limits>

#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "convbasis/logit_range.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

/// The bounds on the device, and the CPU's.
template <class E>
void check_range(const std::array<index_t, 4>& of_query, const std::array<index_t, 4>& of_key,
                 bool is_causal) {
  using T = Compute<E>;
  const auto count = [](const std::array<index_t, 4>& s) { return s[0] * s[1] * s[2] * s[3]; };
  const RandomArray<E> query(count(of_query), 1), key(count(of_key), 2);
  AttentionOptions options;
  options.is_causal = is_causal;
  const LogitNorms<T> want =
      logit_norms<T>(contiguous_view<const T, 4>(query.numbers.data(), of_query),
                     rows_first<const T>(key.numbers.data(), of_key), options, {}, {1});
  const LogitRange got =
      cuda::logit_range<E>(contiguous_view<const E, 4>(query.on_device.data(), of_query),
                           rows_first<const E>(key.on_device.data(), of_key), options, kStream);
  CHECK(got.centre.size() == want.centre.size());
  for (std::size_t i = 0; i < got.centre.size(); ++i)
    CHECK_NEAR(got.centre[i], static_cast<double>(want.centre[i]), 1e-6);
  CHECK(got.radius.size() == want.radius.size());
  for (std::size_t i = 0; i < got.radius.size(); ++i)
    CHECK_NEAR(got.radius[i], want.radius[i], 1e-5 * want.radius[i]);
}

}  // namespace

TEST(logit_range_matches_the_cpu) {
  for (const bool is_causal : {false, true}) {
    check_range<float>({2, 4, 1100, 5}, {2, 2, 1100, 5}, is_causal);
    check_range<double>({1, 2, 70, 40}, {1, 2, 600, 40}, is_causal);
    check_range<BFloat16>({1, 3, 600, 8}, {1, 1, 70, 8}, is_causal);
    check_range<float>({1, 1, 3, 2}, {1, 1, 0, 2}, is_causal);
    check_range<float>({1, 0, 3, 2}, {1, 0, 3, 2}, is_causal);
  }
}

TEST(a_range_bounds_every_logit_and_may_be_infinite) {
  std::vector<double> rows(40, 1e-170);
  rows[7] = 2e-170;
  const auto shape = std::array<index_t, 4>{1, 1, 20, 2};
  const auto range_of = [&] {
    const DeviceBuffer<double> memory = to_device(rows);
    const auto view = contiguous_view<const double, 4>(memory.data(), shape);
    return cuda::logit_range<double>(view, view, {}, kStream).radius[0];
  };
  CHECK(range_of() > 0 && range_of() < 1e-300);
  rows[3] = std::numeric_limits<double>::infinity();
  CHECK(range_of() == std::numeric_limits<double>::infinity());
  rows[3] = std::numeric_limits<double>::quiet_NaN();
  CHECK(range_of() == std::numeric_limits<double>::infinity());
}

TEST(a_range_with_a_mask_is_refused) {
  const DeviceBuffer<float> x(kStream, 8);
  const auto view = contiguous_view<const float, 4>(x.data(), {1, 1, 4, 2});
  AttentionOptions options;
  options.mask = masks::SlidingWindow{2};
  CHECK_THROWS(cuda::logit_range<float>(view, view, options, kStream), InvalidArgument,
               "[logit_range] mask is given; expected none");
}
