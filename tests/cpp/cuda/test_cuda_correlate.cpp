#include <algorithm>
#include <limits>

#include "cuda/correlate.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

const Schedule kSchedules[] = {{{}, 512},
                               {{{64, 512}}, 64},
                               {{{128, 512}}, 128},
                               {{{128, 512}, {64, 128}}, 64},
                               {{{256, 512}, {128, 256}, {64, 128}}, 64}};

template <class T>
std::vector<T> correlate(const RandomBasis<T>& basis, const Schedule& schedule,
                         const std::vector<T>& x, const std::vector<T>& y, index_t channels,
                         index_t workspace) {
  const index_t heads = basis.batch * basis.heads;
  const DeviceBuffer<T> left = to_device(x), right = to_device(y);
  const DeviceBuffer<T> out =
      to_device(std::vector<T>(static_cast<std::size_t>(heads * basis.k * basis.rows), T(77)));
  const Strips<T> strips = strips_of_basis(basis.device(), {}, kStream);
  correlate_strips(strips, schedule, packed_array(left.data(), heads, basis.columns, channels),
                   packed_array(right.data(), heads, basis.rows, channels), out.data(), workspace,
                   kStream);
  return to_host(out);
}

/// Largest error of a lag, over the root mean square of what it sums: sqrt(its terms).
template <class T>
void check_correlations(const RandomBasis<T>& basis, const std::vector<T>& x,
                        const std::vector<T>& y, index_t channels, const std::vector<T>& got) {
  double worst = 0, worst_of_zeros = 0;
  for (index_t head = 0; head < basis.batch * basis.heads; ++head)
    for (index_t r = 0; r < basis.k; ++r) {
      const auto* starts = basis.starts.data() + head * basis.k;
      const index_t count = basis.counts[static_cast<std::size_t>(head)];
      const T* lags = got.data() + (head * basis.k + r) * basis.rows;
      if (r >= count || starts[r] >= basis.columns) {
        CHECK(lags[0] == 77);
        continue;
      }
      const index_t begin = starts[r];
      const index_t end = r + 1 < count ? std::min(starts[r + 1], basis.columns) : basis.columns;
      for (index_t lag = 0; lag < basis.rows - starts[r]; ++lag) {
        long double sum = 0;
        for (index_t j = begin; j < end && j + lag < basis.rows; ++j)
          for (index_t c = 0; c < channels; ++c)
            sum += static_cast<long double>(
                       x[static_cast<std::size_t>((head * basis.columns + j) * channels + c)]) *
                   y[static_cast<std::size_t>((head * basis.rows + j + lag) * channels + c)];
        const double size = std::sqrt(static_cast<double>(basis.columns * channels));
        worst = larger(worst, static_cast<double>(std::abs(lags[lag] - sum)) / size);
        worst_of_zeros = std::max(worst_of_zeros, static_cast<double>(std::abs(sum)) / size);
      }
    }
  // Sums round as their number's root; transforms of normal numbers lose a few eps.
  const double tolerance = 20 * static_cast<double>(std::numeric_limits<T>::epsilon());
  CHECK_NEAR(worst, 0.0, tolerance);
  CHECK(worst_of_zeros > 5 * tolerance);
}

template <class T>
void check_all(index_t rows, index_t columns, index_t k, index_t channels, unsigned seed) {
  const RandomBasis<T> basis(1, 3, k, rows, columns, seed);
  const std::vector<T> x = normal_numbers<T>(3 * columns * channels, seed + 7);
  const std::vector<T> y = normal_numbers<T>(3 * rows * channels, seed + 8);
  index_t workspace = 1;  // chunks as small as they get, then all at once
  for (const Schedule& schedule : kSchedules) {
    check_correlations(basis, x, y, channels,
                       correlate(basis, schedule, x, y, channels, workspace));
    workspace = workspace == 1 ? index_t{1} << 28 : 1;
  }
}

}  // namespace

TEST(correlations_match_dense_sums) {
  for (const index_t n : {1, 2, 63, 64, 65, 130, 257})
    for (const index_t k : {1, 2, 17}) {
      check_all<float>(n, n, k, 3, static_cast<unsigned>(n + k));
      check_all<double>(n, n - n / 3, k, 1, static_cast<unsigned>(n + k + 1));
    }
  check_all<float>(300, 290, 40, 64, 5);
  check_all<float>(200, 1, 3, 70, 6);
  check_all<double>(150, 150, 150, 33, 7);  // every column a strip
}

TEST(correlations_of_many_slices_and_slots_match_dense_sums) {
  // More than one slice of the diagonal, and more than 32 blocks in a span.
  const index_t n = 2600;
  const RandomBasis<float> basis(1, 1, 40, n, n, 8);
  const std::vector<float> x = normal_numbers<float>(n, 9), y = normal_numbers<float>(n, 10);
  check_correlations(basis, x, y, 1, correlate(basis, {{{64, 4096}}, 64}, x, y, 1, 1 << 28));
  const RandomBasis<float> one(1, 1, 1, n, n, 8);
  check_correlations(one, x, y, 1, correlate(one, {{{64, 4096}}, 64}, x, y, 1, 1 << 28));
}
