#include "convbasis/cuda.h"
#include "cuda/exp.h"
#include "cuda/normalize.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

template <class T>
void check_sums(const RandomBasis<T>& basis) {
  const std::array<index_t, 3> shape{basis.batch, basis.heads, basis.rows};
  const index_t count = basis.batch * basis.heads * basis.rows;
  std::vector<T> want(static_cast<std::size_t>(count));
  convbasis::row_sums<T>(basis.host(), contiguous_view<T, 3>(want.data(), shape), {1});
  const DeviceBuffer<T> sums(kStream, count);
  cuda::row_sums<T>(basis.device(), contiguous_view<T, 3>(sums.data(), shape), kStream);
  const std::vector<T> got = to_host(sums);
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    // Positive numbers: both sums err by roundings of double and one of T.
    const double size = std::abs(static_cast<double>(want[i]));
    worst = larger(worst, std::abs(static_cast<double>(got[i] - want[i])) / (size > 0 ? size : 1));
  }
  CHECK_NEAR(worst, 0.0, 1.01 * static_cast<double>(std::numeric_limits<T>::epsilon()) + 1e-13);
}

template <class T>
void make_positive(RandomBasis<T>& basis) {
  for (T& value : basis.kernels) value = std::exp(4 * value);
  basis.on_device = to_device(basis.kernels);
}

}  // namespace

TEST(row_sums_match_the_cpu_without_cancellation) {
  for (const index_t n : {1, 2, 63, 64, 65, 511, 512, 513, 1000, 1536, 4133})
    for (const index_t k : {1, 2, 17}) {
      RandomBasis<float> single(1, 3, k, n, n, static_cast<unsigned>(n + k));
      make_positive(single);
      check_sums(single);
      RandomBasis<double> wide(2, 2, k, n, n - n / 3, static_cast<unsigned>(n + k + 1));
      make_positive(wide);
      check_sums(wide);
    }
}

TEST(weights_are_exponentials_of_logits_less_the_largest) {
  for (const index_t n : {1, 65, 300}) {
    const RandomBasis<double> basis(1, 4, 5, n, n, 3);
    const Weights<double> weights =
        exponentiate(triangles_of<double>(basis.device(), nullptr, {}, kStream), kStream);
    const Strips<double>& strips = weights.triangles.front();
    const std::vector<double> kernels = to_host(strips.own_kernels);
    const std::vector<double> shifts = to_host(weights.shifts);
    const index_t most = strips.table.most;
    for (index_t head = 0; head < 4; ++head) {
      const auto h = static_cast<std::size_t>(head);
      const index_t count = basis.counts[h];
      const StripLayout& layout = strips.layouts[h];
      const index_t added = layout.count() - count;
      CHECK(layout.begin(0) == 0);
      double top = added > 0 ? 0 : -INFINITY;
      for (index_t r = 0; r < count; ++r)
        for (index_t lag = 0; lag < n - layout.begin(r + added); ++lag)
          top = std::max(top, basis.host().kernels(0, head, r, lag));
      CHECK(shifts[h] == top);
      for (index_t r = 0; r < layout.count(); ++r)
        for (index_t lag = 0; lag < n - layout.begin(r); ++lag) {
          const double logit = r < added ? 0 : basis.host().kernels(0, head, r - added, lag);
          const auto at = static_cast<std::size_t>((head * most + r) * n + lag);
          CHECK_NEAR(kernels[at], std::exp(logit - top), 1e-15);
        }
    }
  }
}
