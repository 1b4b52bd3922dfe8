#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "convbasis/toeplitz.h"
#include "strips.h"

using namespace convbasis;

namespace {

/// y = A x (or A^T x) by the given schedule; x has `channels` numbers a row.
template <class T>
std::vector<T> multiply(const Strips<T>& strips, const Schedule& schedule, bool transpose,
                        const std::vector<T>& x, index_t channels, int threads = 1) {
  const index_t outputs = transpose ? strips.layout.columns : strips.layout.rows;
  std::vector<T> y(static_cast<std::size_t>(outputs * channels), T(77));  // overwritten
  StageSeconds seconds;
  multiply_strips<T>(strips.matrix(), schedule, transpose, {x.data(), channels},
                     {y.data(), channels}, channels, {threads}, seconds);
  return y;
}

/// The dense product in long double.
struct Dense {
  template <class T>
  Dense(const Strips<T>& strips, bool transpose, const std::vector<T>& x, index_t width)
      : channels(width), rows(strips.layout.rows) {
    const index_t outputs = transpose ? strips.layout.columns : strips.layout.rows;
    const index_t inputs = transpose ? strips.layout.rows : strips.layout.columns;
    values.assign(static_cast<std::size_t>(outputs * channels), 0.0L);
    for (index_t o = 0; o < outputs; ++o) {
      long double energy = 0;
      for (index_t s = 0; s < inputs; ++s) {
        const long double weight = transpose ? strips.entry(s, o) : strips.entry(o, s);
        if (weight == 0) continue;
        energy += weight * weight;
        const T* from = x.data() + s * channels;
        long double* to = values.data() + o * channels;
        for (index_t c = 0; c < channels; ++c) to[c] += weight * static_cast<long double>(from[c]);
      }
      matrix_size = std::max(matrix_size, std::sqrt(energy));
    }
    x_size.assign(static_cast<std::size_t>(channels), 0.0L);
    for (std::size_t i = 0; i < x.size(); ++i)
      x_size[i % x_size.size()] += static_cast<long double>(x[i]) * static_cast<long double>(x[i]);
    for (long double& size : x_size) size = std::sqrt(size);
  }

  /// Checks y, relative to the largest |row of A| times |channel of x|.
  template <class T>
  void check(const std::vector<T>& y) const {
    double worst = 0, worst_of_zeros = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const long double error = std::abs(static_cast<long double>(y[i]) - values[i]);
      if (error == 0) continue;
      const long double size = matrix_size * x_size[i % x_size.size()];
      worst = larger(worst, static_cast<double>(error / size));
      worst_of_zeros = larger(worst_of_zeros, static_cast<double>(std::abs(values[i]) / size));
    }
    // FFTs of depth log2 and sums of at most n random roundings.
    const double depth = std::sqrt(static_cast<double>(rows)) + 10;
    const double tolerance = kEps<T> * depth / 4;
    CHECK_NEAR(worst, 0.0, tolerance);
    CHECK(worst == 0 || worst_of_zeros > 20 * tolerance);
  }

  index_t channels, rows;
  std::vector<long double> values, x_size;
  long double matrix_size = 0;
};

}  // namespace

TEST(forced_schedules_match_dense_products) {
  // Every shape meets every schedule, in float or in double, which saves half of the time.
  const auto check = []<class T>(T, std::size_t turn) {
    const index_t lanes = kernels<T>().lanes;
    std::vector<Strips<T>> all = strips_of_every_shape<T>();
    all.emplace_back(301, 300, std::vector<index_t>{2, 17, 160});
    for (const Strips<T>& strips : all) {
      const index_t channels = strips.layout.rows == 301 ? 2 * lanes : lanes;
      for (const bool transpose : {false, true}) {
        const index_t inputs = transpose ? strips.layout.rows : strips.layout.columns;
        const std::vector<T> x = random_numbers<T>(inputs * channels, 3);
        const Dense dense(strips, transpose, x, channels);
        for (std::size_t s = turn++ % 2; s < schedules().size(); s += 2)
          dense.check(multiply(strips, schedules()[s], transpose, x, channels));
      }
    }
  };
  check(float(), 0);
  check(double(), 1);
}

TEST(no_strip_gives_zeros) {
  const index_t lanes = kernels<double>().lanes;
  for (const Schedule& schedule : schedules())
    for (const bool transpose : {false, true}) {
      const Strips<double> none(20, 20, {});
      for (const double value :
           multiply(none, schedule, transpose, random_numbers<double>(20 * lanes, 4), lanes))
        CHECK(value == 0);
    }
}

TEST(the_transpose_is_the_adjoint) {
  const index_t lanes = kernels<double>().lanes;
  for (const Strips<double>& strips :
       {Strips<double>(130, 130, {5}), Strips<double>(130, 100, {0, 64, 65, 99}),
        Strips<double>(97, 97, {0, 1, 2, 3, 31, 32}), Strips<double>(150, 1, {0})}) {
    for (const Schedule& schedule : schedules()) {
      const std::vector<double> x = random_numbers<double>(strips.layout.columns * lanes, 5),
                                y = random_numbers<double>(strips.layout.rows * lanes, 6);
      const std::vector<double> ax = multiply(strips, schedule, false, x, lanes),
                                aty = multiply(strips, schedule, true, y, lanes);
      long double left = 0, right = 0, size = 0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        left += static_cast<long double>(ax[i]) * y[i];
        size += std::abs(static_cast<long double>(ax[i]) * y[i]);
      }
      for (std::size_t j = 0; j < x.size(); ++j) right += static_cast<long double>(x[j]) * aty[j];
      // Both sides sum the same rounded products; each product errs by a few eps of its size.
      CHECK_NEAR(static_cast<double>((left - right) / size), 0.0, 20 * kEps<double>);
      CHECK(std::abs(left / size) > 1e-6L);
    }
  }
}

TEST(the_future_does_not_touch_the_past_bitwise) {
  const index_t lanes = kernels<float>().lanes;
  const Strips<float> strips(193, 193, {0, 3, 64, 100, 170});
  for (const Schedule& schedule : schedules()) {
    for (const bool transpose : {false, true}) {
      const std::vector<float> x = random_numbers<float>(193 * lanes, 7);
      const std::vector<float> y = multiply(strips, schedule, transpose, x, lanes);
      for (const index_t change : {1, 64, 65, 192}) {
        // A x at row i depends on x up to i, A^T x on x from i on.
        std::vector<float> other = x;
        const auto at = static_cast<std::size_t>(change * lanes);
        const auto begin = transpose ? other.begin() : other.begin() + change * lanes;
        const auto end = transpose ? other.begin() + change * lanes : other.end();
        std::transform(begin, end, begin, [](float value) { return 1e6F * value + 3; });
        const std::vector<float> z = multiply(strips, schedule, transpose, other, lanes);
        CHECK(transpose
                  ? std::equal(z.begin() + change * lanes, z.end(), y.begin() + change * lanes)
                  : std::equal(z.begin(), z.begin() + change * lanes, y.begin()));
        CHECK(transpose ? z[at - 1] != y[at - 1] : z[at] != y[at]);
      }
    }
  }
}

TEST(threads_do_not_change_a_bit) {
  const index_t lanes = kernels<float>().lanes;
  const Strips<float> strips(193, 180, {0, 3, 64, 100, 170});
  for (const Schedule& schedule : schedules())
    for (const bool transpose : {false, true}) {
      const std::vector<float> x = random_numbers<float>(193 * lanes, 8);
      const std::vector<float> once = multiply(strips, schedule, transpose, x, lanes, 1);
      for (const int threads : {2, 5})
        CHECK(multiply(strips, schedule, transpose, x, lanes, threads) == once);
    }
}

namespace {

/// conv_matmul of two heads with different strips, x and y strided, against dense sums.
template <class T>
void check_conv_matmul(index_t n, index_t columns, index_t channels, bool transpose) {
  const std::vector<Strips<T>> heads{{n, columns, {0}, 11}, {n, columns, {n / 3, n / 2 + 1}, 12}};
  constexpr index_t kStrips = 2;
  std::vector<index_t> starts, counts;
  std::vector<T> kernels;
  for (const Strips<T>& head : heads) {
    index_t used = 0;
    for (const index_t start : head.layout.starts) used += start < n ? 1 : 0;
    counts.push_back(used);
    for (index_t r = 0; r < kStrips; ++r)
      starts.push_back(r < used ? head.layout.starts[static_cast<std::size_t>(r)] : n);
    kernels.insert(kernels.end(), head.kernels.begin(), head.kernels.end());
    kernels.resize(starts.size() * static_cast<std::size_t>(n),
                   std::numeric_limits<T>::quiet_NaN());
  }
  const BasisView<T> basis{contiguous_view<const index_t, 3>(starts.data(), {1, 2, kStrips}),
                           contiguous_view<const index_t, 2>(counts.data(), {1, 2}),
                           contiguous_view<const T, 4>(kernels.data(), {1, 2, kStrips, n}),
                           columns};
  const index_t inputs = transpose ? n : columns, outputs = transpose ? columns : n;
  // x (channels, heads, inputs), transposed; y backwards with a gap after each row.
  const std::vector<T> x = random_numbers<T>(2 * inputs * channels, 13);
  std::vector<T> y(static_cast<std::size_t>(2 * outputs * (channels + 1) + 1), T(77));
  const View<const T, 4> from{x.data(), {1, 2, inputs, channels}, {0, inputs, 1, 2 * inputs}};
  const index_t row = channels + 1;
  const View<T, 4> to{
      y.data() + (2 * outputs - 1) * row, {1, 2, outputs, channels}, {0, -outputs * row, -row, 1}};
  conv_matmul<T>(basis, from, outputs > 0 ? to : View<T, 4>{y.data(), to.shape, to.strides},
                 transpose, {1});
  for (index_t h = 0; h < 2; ++h) {
    std::vector<T> packed_x, packed_y;
    for (index_t i = 0; i < inputs; ++i)
      for (index_t c = 0; c < channels; ++c) packed_x.push_back(from(0, h, i, c));
    for (index_t i = 0; i < outputs; ++i)
      for (index_t c = 0; c < channels; ++c) packed_y.push_back(to(0, h, i, c));
    Dense(heads[static_cast<std::size_t>(h)], transpose, packed_x, channels).check(packed_y);
  }
  for (index_t i = 1; i <= 2 * outputs; ++i)  // the gaps
    CHECK(y[static_cast<std::size_t>(i * row - 1)] == T(77));
}

}  // namespace

TEST(conv_matmul_matches_dense_products) {
  for (const bool transpose : {false, true}) {
    for (const index_t n : {0, 1, 2, 3, 5, 7, 16, 33, 65, 130}) {
      for (const index_t channels : {1, 3, 16}) {
        check_conv_matmul<float>(n, n, channels, transpose);
        check_conv_matmul<double>(n, n / 2, channels, transpose);
      }
    }
    check_conv_matmul<float>(1100, 1000, 1, transpose);  // long enough for a schedule of its own
  }
}
