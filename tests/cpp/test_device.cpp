#include "check.h"
#include "convbasis/cuda.h"
#include "convbasis/device.h"
#include "convbasis/error.h"

using namespace convbasis;

TEST(what_the_device_says_fits_together) {
  // With CUDA or without, with a GPU or without one: nothing throws, and a reason comes with a no.
  CHECK(!cuda_available() || cuda::device_count() > 0);
  CHECK(cuda_available() == cuda::why_unavailable().empty());
  CHECK_THROWS(cuda::device_info(1000), BackendError, "[");
}

TEST(without_a_gpu_each_stage_says_what_is_missing) {
  if (cuda_available()) return;
  const index_t start = 0, count = 1;
  const float number = 1;
  float out = 0;
  const BasisView<float> basis{contiguous_view<const index_t, 3>(&start, {1, 1, 1}),
                               contiguous_view<const index_t, 2>(&count, {1, 1}),
                               contiguous_view<const float, 4>(&number, {1, 1, 1, 1}), 1};
  const auto x = contiguous_view<const float, 4>(&number, {1, 1, 1, 1});
  const auto y = contiguous_view<float, 4>(&out, {1, 1, 1, 1});
  CHECK_THROWS(cuda::conv_matmul<float>(basis, x, y, false, {}), BackendError, "");
  CHECK_THROWS(cuda::conv_attention<float>(basis, nullptr, x, y, {}, {}, {}, {}), BackendError, "");
  const auto kernels = contiguous_view<float, 4>(&out, {1, 1, 1, 1});
  CHECK_THROWS(
      cuda::recover_kernels<float>(x, x, basis.starts, basis.num_bases, 1, kernels, cuda::Stream{}),
      BackendError, "");
  const auto sums = contiguous_view<float, 3>(&out, {1, 1, 1});
  CHECK_THROWS(cuda::row_sums<float>(basis, sums, {}), BackendError, "");
  CHECK_THROWS(cuda::device_of(&number), BackendError, "");
  CHECK_THROWS(cuda::make_memory({}, 8), BackendError, "");
  CHECK_THROWS(cuda::order({}, &out), BackendError, "");
}
