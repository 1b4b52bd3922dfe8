#include <algorithm>
#include <limits>

#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "convbasis/toeplitz.h"
#include "cuda/toeplitz.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

template <class T>
constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

/// Entry (i, j) of one head.
template <class T>
long double entry(const RandomBasis<T>& basis, index_t head, index_t i, index_t j) {
  const auto* starts = basis.starts.data() + head * basis.k;
  for (index_t r = basis.counts[static_cast<std::size_t>(head)]; r-- > 0 && i >= j;)
    if (j >= starts[r])
      return basis.kernels[static_cast<std::size_t>((head * basis.k + r) * basis.rows + i - j)];
  return 0;
}

/// What a product of all heads has to be, and how large its rows are.
template <class T>
struct Dense {
  Dense(const RandomBasis<T>& basis, bool transpose, const std::vector<T>& x, index_t channels)
      : width(channels), outputs(transpose ? basis.columns : basis.rows) {
    const index_t inputs = transpose ? basis.rows : basis.columns;
    for (index_t head = 0; head < basis.batch * basis.heads; ++head) {
      for (index_t o = 0; o < outputs; ++o) {
        std::vector<long double> row(static_cast<std::size_t>(width), 0);
        long double energy = 0;
        for (index_t s = 0; s < inputs; ++s) {
          const long double weight =
              transpose ? entry(basis, head, s, o) : entry(basis, head, o, s);
          if (weight == 0) continue;
          energy += weight * weight;
          const T* from = x.data() + (head * inputs + s) * width;
          for (index_t c = 0; c < width; ++c)
            row[static_cast<std::size_t>(c)] += weight * static_cast<long double>(from[c]);
        }
        values.insert(values.end(), row.begin(), row.end());
        size = std::max(size, std::sqrt(energy));
      }
    }
    long double energy = 0;
    for (const T value : x) energy += static_cast<long double>(value) * value;
    size *= std::sqrt(energy / static_cast<long double>(basis.batch * basis.heads * width));
  }

  /// Relative to the largest |row of A| times |channel of x|; `unit` is eps of what y is kept in.
  template <class Y>
  void check(const std::vector<Y>& y, double unit) const {
    double worst = 0, worst_of_zeros = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const long double error = std::abs(static_cast<long double>(y[i]) - values[i]);
      if (error == 0) continue;
      worst = larger(worst, static_cast<double>(error / size));
      worst_of_zeros = larger(worst_of_zeros, static_cast<double>(std::abs(values[i]) / size));
    }
    const double tolerance = unit * (std::sqrt(static_cast<double>(outputs)) + 10) / 4;
    CHECK_NEAR(worst, 0.0, tolerance);
    CHECK(worst == 0 || worst_of_zeros > 5 * tolerance);
  }

  index_t width, outputs;
  std::vector<long double> values;
  long double size = 0;
};

template <class T, class E = T>
std::vector<T> multiply(const RandomBasis<T>& basis, const Schedule& schedule, bool transpose,
                        const std::vector<E>& x, index_t channels, index_t workspace) {
  const index_t inputs = transpose ? basis.rows : basis.columns;
  const index_t outputs = transpose ? basis.columns : basis.rows;
  const DeviceBuffer<E> from = to_device(x);
  const DeviceBuffer<T> to = to_device(std::vector<T>(
      static_cast<std::size_t>(basis.batch * basis.heads * outputs * channels), T(77)));
  const Strips<T> strips = strips_of_basis(basis.device(), {}, kStream);
  multiply_strips(
      strips, schedule, transpose,
      array_of(
          contiguous_view<const E, 4>(from.data(), {basis.batch, basis.heads, inputs, channels}),
          basis.heads),
      array_of(contiguous_view<T, 4>(to.data(), {basis.batch, basis.heads, outputs, channels}),
               basis.heads),
      workspace, kStream);
  return to_host(to);
}

const Schedule kSchedules[] = {{{}, 512},
                               {{{16, 512}}, 16},
                               {{{64, 512}}, 64},
                               {{{128, 512}, {32, 128}}, 32},
                               {{{128, 512}, {64, 128}, {16, 64}}, 16}};

template <class T>
void check_all(index_t rows, index_t columns, index_t k, index_t channels, unsigned seed) {
  const RandomBasis<T> basis(1, 3, k, rows, columns, seed);
  for (const bool transpose : {false, true}) {
    const std::vector<T> x =
        normal_numbers<T>(3 * (transpose ? rows : columns) * channels, seed + 7);
    const Dense<T> dense(basis, transpose, x, channels);
    index_t workspace = 1;  // chunks as small as they get, then all at once
    for (const Schedule& schedule : kSchedules) {
      dense.check(multiply(basis, schedule, transpose, x, channels, workspace), kEps<T>);
      workspace = workspace == 1 ? index_t{1} << 28 : 1;
    }
  }
}

}  // namespace

TEST(forced_schedules_match_dense_products) {
  for (const index_t n : {1, 2, 3, 17, 63, 64, 65, 127, 130, 257})
    for (const index_t k : {1, 2, 17}) {
      check_all<float>(n, n, k, 3, static_cast<unsigned>(n + k));
      check_all<double>(n, n - n / 3, k, 1, static_cast<unsigned>(n + k + 1));
    }
  check_all<float>(300, 290, 40, 64, 5);
  check_all<float>(200, 1, 3, 70, 6);
  check_all<double>(150, 150, 150, 130, 7);  // every column a strip
}

TEST(products_with_halves_lose_no_more_than_their_weights) {
  const auto check = [&]<class E>(E, index_t n, index_t columns, index_t channels) {
    const RandomBasis<float> basis(1, 3, 9, n, columns, 21);
    for (const bool transpose : {false, true}) {
      const RandomArray<E> x(3 * (transpose ? n : columns) * channels, 22);
      const Dense<float> dense(basis, transpose, x.numbers, channels);
      const std::vector<E> elements = to_host(x.on_device);
      for (const Schedule& schedule : kSchedules)
        dense.check(multiply(basis, schedule, transpose, elements, channels, 1), 0x1p-18);
    }
  };
  for (const index_t n : {1, 63, 65, 200, 321}) {
    check(BFloat16(), n, n, 3);
    check(Float16(), n, n - n / 3, 3);
  }
  check(BFloat16(), 150, 140, 70);
  check(BFloat16(), 100, 100, 200);
  check(Float16(), 130, 130, 72);
}

TEST(chosen_schedules_match_the_cpu) {
  for (const index_t n : {1, 65, 1000, 4133}) {
    const index_t channels = n > 4000 ? 5 : 9;
    const RandomBasis<double> basis(2, 2, 9, n, n, 11);
    for (const bool transpose : {false, true}) {
      const std::vector<double> x = normal_numbers<double>(4 * n * channels, 12);
      std::vector<double> want(x.size());
      const std::array<index_t, 4> shape{2, 2, n, channels};
      convbasis::conv_matmul<double>(
          basis.host(), contiguous_view<const double, 4>(x.data(), shape),
          contiguous_view<double, 4>(want.data(), shape), transpose, {1});
      const DeviceBuffer<double> from = to_device(x), to(kStream, 4 * n * channels);
      cuda::conv_matmul<double>(basis.device(),
                                contiguous_view<const double, 4>(from.data(), shape),
                                contiguous_view<double, 4>(to.data(), shape), transpose, kStream);
      const std::vector<double> got = to_host(to);
      double worst = 0, size = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        worst = larger(worst, std::abs(got[i] - want[i]));
        size = std::max(size, std::abs(want[i]));
      }
      CHECK_NEAR(worst / size, 0.0, 100 * kEps<double>);
      CHECK(size > 0);
    }
  }
}

TEST(schedules_have_levels_where_they_pay) {
  const GpuModel model;
  const auto chosen = [&](index_t n, index_t heads, index_t channels) {
    const std::vector<StripLayout> layouts(static_cast<std::size_t>(heads), {n, n, {0, n / 2}});
    return choose_schedule(layouts, channels, 4, model);
  };
  CHECK(chosen(100, 1, 64).levels.empty());
  CHECK(chosen(4133, 1, 4).levels.size() == 1);
  CHECK(chosen(16384, 32, 128).levels.size() == 1);
  CHECK(chosen(131072, 32, 128).levels.size() == 2);
  for (const index_t n : {1, 64, 65, 5000, 131072}) {
    const Schedule schedule = chosen(n, 3, 64);
    index_t span = schedule.levels.empty() ? schedule.diagonal : schedule.levels.front().span;
    CHECK(span >= n);
    for (const Level& level : schedule.levels) {
      CHECK(level.span == span && span % level.block == 0);
      span = level.block;
    }
    CHECK(schedule.diagonal == span);
  }
}

TEST(direct_sums_are_bounded_by_what_they_lose) {
  // Cheap tiles and expensive windows would have all of a head in one block.
  std::vector<index_t> starts;
  for (index_t r = 0; r < 64; ++r) starts.push_back(80 * r);
  for (const Element element : {Element::float16, Element::bfloat16})
    for (const index_t n : {5500, 8192}) {
      const std::vector<StripLayout> layouts(2, {n, n, starts});
      CHECK(choose_schedule(layouts, 64, 4, model_for(element)).diagonal <= 2048);
    }
}

TEST(half_precision_is_rounded_once) {
  // The sums of float, with weights of 16 bits, rounded to what the caller keeps: half an eps of
  // it.
  const index_t n = 700, channels = 3;
  const RandomBasis<float> basis(1, 2, 3, n, n, 31);
  const std::vector<float> x = normal_numbers<float>(2 * n * channels, 32);
  const std::array<index_t, 4> shape{1, 2, n, channels};
  const auto check = [&]<class E>(E, auto to, auto from, double unit) {
    std::vector<E> halves;
    std::vector<float> rounded;
    for (const float value : x) {
      halves.push_back({to(value)});
      rounded.push_back(from(halves.back().bits));
    }
    const DeviceBuffer<E> in = to_device(halves), out(kStream, in.size());
    cuda::conv_matmul<E>(basis.device(), contiguous_view<const E, 4>(in.data(), shape),
                         contiguous_view<E, 4>(out.data(), shape), false, kStream);
    const std::vector<E> got = to_host(out);
    std::vector<float> want(x.size());
    convbasis::conv_matmul<float>(basis.host(),
                                  contiguous_view<const float, 4>(rounded.data(), shape),
                                  contiguous_view<float, 4>(want.data(), shape), false, {1});
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto size = static_cast<double>(std::abs(want[i]));
      CHECK_NEAR(static_cast<double>(from(got[i].bits)), static_cast<double>(want[i]),
                 unit * size + 0x1p-17 * std::sqrt(n));
    }
  };
  check(Float16(), to_float16, from_float16, 0x1p-11);
  check(BFloat16(), to_bfloat16, from_bfloat16, 0x1p-8);
}

TEST(strided_arrays_are_read_and_written_where_they_are) {
  // (batch, seq, heads, dim) arrays seen as (batch, heads, seq, dim), kernels with rows to spare.
  const index_t n = 150, heads = 3, channels = 2;
  const RandomBasis<double> basis(2, heads, 2, n, n, 41);
  const std::vector<double> x = normal_numbers<double>(2 * n * heads * channels, 42);
  const std::array<index_t, 4> shape{2, heads, n, channels};
  const std::array<index_t, 4> strides{n * heads * channels, channels, heads * channels, 1};
  std::vector<double> want(x.size());
  convbasis::conv_matmul<double>(basis.host(), {x.data(), shape, strides},
                                 {want.data(), shape, strides}, false, {1});
  const DeviceBuffer<double> in = to_device(x), out(kStream, in.size());
  cuda::conv_matmul<double>(basis.device(), {in.data(), shape, strides},
                            {out.data(), shape, strides}, false, kStream);
  const std::vector<double> got = to_host(out);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK_NEAR(got[i], want[i], 1e-12);
}

TEST(the_future_does_not_touch_the_past_bitwise) {
  const RandomBasis<float> basis(1, 1, 5, 193, 193, 51);
  for (const Schedule& schedule : kSchedules) {
    std::vector<float> x = normal_numbers<float>(193 * 2, 52);
    const std::vector<float> y = multiply(basis, schedule, false, x, 2, 1);
    for (const index_t change : {192, 64, 17}) {
      for (std::size_t i = static_cast<std::size_t>(2 * change); i < x.size(); ++i) x[i] += 1e6F;
      const std::vector<float> other = multiply(basis, schedule, false, x, 2, 1);
      CHECK(std::equal(y.begin(), y.begin() + 2 * change, other.begin()));
      CHECK(y.back() != other.back());
    }
  }
}

TEST(wrong_arguments_are_refused_before_anything_is_written) {
  const RandomBasis<float> basis(1, 1, 1, 4, 4, 61);
  const DeviceBuffer<float> x(kStream, 8);
  const auto in = contiguous_view<const float, 4>(x.data(), {1, 1, 4, 2});
  const auto out = contiguous_view<float, 4>(x.data(), {1, 1, 3, 2});
  CHECK_THROWS(cuda::conv_matmul<float>(basis.device(), in, out, false, kStream), InvalidArgument,
               "[conv_matmul] y has shape (1, 1, 3, 2); expected (1, 1, 4, 2)");
}
