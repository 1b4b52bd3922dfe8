#include <limits>

#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "convbasis/recover.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

TEST(kernels_match_the_cpu) {
  const auto check = []<class T>(T) {
    for (const index_t n : {1, 2, 63, 65, 257}) {
      // Starts and numbers of strips as they come; kernels are overwritten. Two heads share a key.
      const index_t columns = n - n / 4, dim = 5;
      const RandomBasis<T> basis(2, 4, 6, n, columns, static_cast<unsigned>(n));
      std::vector<index_t> starts = basis.starts, counts = basis.counts;
      for (std::size_t head = 0; head < counts.size(); ++head)
        while (counts[head] > 0 && starts[head * static_cast<std::size_t>(basis.k) +
                                          static_cast<std::size_t>(counts[head] - 1)] >= columns)
          --counts[head];
      const auto starts_view = contiguous_view<const index_t, 3>(starts.data(), {2, 4, basis.k});
      const auto counts_view = contiguous_view<const index_t, 2>(counts.data(), {2, 4});
      const std::vector<T> q = normal_numbers<T>(8 * n * dim, 1);
      const std::vector<T> k = normal_numbers<T>(4 * columns * dim, 2);
      const std::array<index_t, 4> of_q{2, 4, n, dim}, of_k{2, 2, columns, dim};
      const std::array<index_t, 4> of_kernels{2, 4, basis.k, n};
      std::vector<T> want(basis.kernels.size(), T(7));
      convbasis::recover_kernels<T>(
          contiguous_view<const T, 4>(q.data(), of_q), contiguous_view<const T, 4>(k.data(), of_k),
          starts_view, counts_view, 0.3, contiguous_view<T, 4>(want.data(), of_kernels), {1});
      const DeviceBuffer<T> on_q = to_device(q), on_k = to_device(k);
      const DeviceBuffer<T> kernels(kStream, static_cast<index_t>(want.size()));
      cuda::recover_kernels<T>(contiguous_view<const T, 4>(on_q.data(), of_q),
                               contiguous_view<const T, 4>(on_k.data(), of_k), starts_view,
                               counts_view, 0.3, contiguous_view<T, 4>(kernels.data(), of_kernels),
                               kStream);
      const std::vector<T> got = to_host(kernels);
      double worst = 0, size = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        worst = larger(worst, std::abs(static_cast<double>(got[i] - want[i])));
        size = std::max(size, std::abs(static_cast<double>(want[i])));
        if (want[i] == 0) CHECK(got[i] == 0);
      }
      CHECK_NEAR(worst, 0.0, 20 * static_cast<double>(std::numeric_limits<T>::epsilon()) * size);
      CHECK(size > 0);
    }
  };
  check(float());
  check(double());
}
