#include <algorithm>
#include <cmath>
#include <limits>

#include "builds.h"
#include "check.h"

using namespace convbasis;

namespace {

/// The larger error; NaN counts as infinite.
double larger(double worst, double error) {
  if (error <= worst) return worst;
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

/// A sum of products in long double, and errors relative to the sum of their sizes.
struct Sum {
  long double value = 0, size = 0;
  template <class T>
  void add(T a, T b) {
    const long double product = static_cast<long double>(a) * static_cast<long double>(b);
    value += product;
    size += std::abs(product);
  }
  [[nodiscard]] double error(long double got) const {
    return static_cast<double>(std::abs(got - value) / size);
  }
};

/// |got - exact exp| in units in the last place of the exact value.
template <class T>
double ulps(T got, long double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  const long double unit = std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits);
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) / unit);
}

}  // namespace

TEST(a_baseline_build_exists_and_the_fastest_comes_last) {
  CHECK(available_kernels<float>().front()->name == "baseline");
  CHECK(available_kernels<float>().back() == &kernels<float>());
  CHECK(available_kernels<double>().back() == &kernels<double>());
  for_each_build([](const auto& simd, auto) { CHECK(simd.lanes >= 1 && simd.lanes <= 64); });
}

TEST(exp_is_within_two_ulps_over_the_whole_range) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    // From the smallest normal result to sqrt(2) below the largest: what is above may be infinite
    // (the library's arguments are never positive).
    const double low = std::log(static_cast<double>(std::numeric_limits<T>::min())) + 1e-3;
    const double high = std::log(static_cast<double>(std::numeric_limits<T>::max())) - 0.35;
    constexpr index_t kPoints = 6001;
    std::vector<T> x(kPoints), y(kPoints);
    for (index_t i = 0; i < kPoints; ++i)
      x[static_cast<std::size_t>(i)] = static_cast<T>(low + (high - low) * i / 6000.);
    simd.exp_shifted(x.data(), T(0), y.data(), kPoints);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      worst = larger(worst, ulps(y[i], std::exp(static_cast<long double>(x[i]))));
    CHECK_NEAR(worst, 0.0, 2.0);
  });
}

TEST(exp_near_zero_is_exact_at_zero_and_within_two_ulps) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for_each_vector<T>(10, [&](T* x, index_t n) {
      const std::vector<T> before(x, x + n);
      const T shift = T(0.75);
      simd.exp_shifted(x, shift, x, n);  // in place
      for (index_t i = 0; i < n; ++i) {
        const T difference = before[static_cast<std::size_t>(i)] - shift;
        CHECK_NEAR(ulps(x[i], std::exp(static_cast<long double>(difference))), 0.0, 2.0);
      }
      std::fill(x, x + n, T(-3));
      simd.exp_shifted(x, T(-3), x, n);
      for (index_t i = 0; i < n; ++i) CHECK(x[i] == T(1));
    });
  });
}

TEST(exp_underflows_to_zero_without_nan) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    const double low = std::log(static_cast<double>(std::numeric_limits<T>::min()));
    const std::vector<T> below{static_cast<T>(low - 0.5),
                               static_cast<T>(low - 5),
                               static_cast<T>(low - 40),
                               static_cast<T>(2 * low),
                               T(-1e6),
                               std::numeric_limits<T>::lowest(),
                               -kInfinity};
    for (const T x : below) {
      for (index_t n : {1, simd.lanes, 2 * simd.lanes + 1}) {
        std::vector<T> y(static_cast<std::size_t>(n), x);
        simd.exp_shifted(y.data(), T(0), y.data(), n);
        // A result below the smallest normal number may be flushed, never more.
        for (const T weight : y) CHECK(weight >= 0 && weight < std::numeric_limits<T>::min());
        if (x < T(1.2 * low))
          for (const T weight : y) CHECK(weight == 0);
        std::vector<T> z(static_cast<std::size_t>(n), x);
        CHECK(simd.exp_sum(z.data(), T(0), n) <
              static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::min()));
      }
    }
  });
}

TEST(exp_sum_stores_what_it_sums) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for_each_vector<T>(20, [&](T* x, index_t n) {
      std::vector<T> separate(static_cast<std::size_t>(n));
      simd.exp_shifted(x, T(0.5), separate.data(), n);
      const double sum = simd.exp_sum(x, T(0.5), n);
      double expected = 0;
      for (index_t i = 0; i < n; ++i) {
        CHECK(x[i] == separate[static_cast<std::size_t>(i)]);
        expected += static_cast<double>(x[i]);
      }
      // Positive terms: each partial sum in T adds eps / 2.
      CHECK_NEAR(sum, expected, kEps<T> * (2 + static_cast<double>(n) / simd.lanes) * expected);
    });
  });
}

TEST(max_value_finds_the_largest_in_every_place) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for_each_vector<T>(30, [&](T* x, index_t n) {
      if (n == 0) return;
      for (index_t i = 0; i < n; ++i) x[i] -= T(100);  // a padding zero would win
      CHECK(simd.max_value(x, n) == *std::max_element(x, x + n));
      for (index_t i = 0; i < n; ++i) {
        const T before = x[i];
        x[i] = T(-50);
        CHECK(simd.max_value(x, n) == T(-50));
        x[i] = before;
      }
      std::fill(x, x + n, -std::numeric_limits<T>::infinity());
      CHECK(simd.max_value(x, n) == -std::numeric_limits<T>::infinity());
    });
  });
}

TEST(distances_and_squares_match_plain_sums) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    // Runs of 64 vectors are added in T: at most 64 + log2(lanes) roundings of eps / 2 a term.
    const double tolerance = 35 * kEps<T>;
    const auto compare = [&](const T* x, index_t n) {
      if (n == 0) {
        CHECK(simd.norm(x, 0) == 0 && simd.max_magnitude(x, 0) == 0 &&
              simd.l1_distance(x, x, 0) == 0);
        CHECK(simd.max_distance(x, x, 0) == 0);
        return;
      }
      const std::vector<T> y = random_numbers<T>(n, 40);
      Sum squares, l1;
      T largest = 0;
      for (index_t i = 0; i < n; ++i) {
        const T distance = std::abs(x[i] - y[static_cast<std::size_t>(i)]);
        squares.add(x[i], x[i]);
        l1.add(distance, T(1));
        largest = std::max(largest, distance);
      }
      const double norm = simd.norm(x, n);
      CHECK_NEAR(squares.error(norm * norm), 0.0, tolerance);
      CHECK_NEAR(l1.error(simd.l1_distance(x, y.data(), n)), 0.0, tolerance);
      CHECK(simd.max_distance(x, y.data(), n) == largest);
    };
    for_each_vector<T>(41, compare);
    compare(random_numbers<T>(3001, 42).data(), 3001);  // several runs
  });
}

TEST(scale_multiplies_every_element_once) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for_each_vector<T>(50, [&](T* x, index_t n) {
      const std::vector<T> before(x, x + n);
      simd.scale(x, T(-1.7), n);
      for (index_t i = 0; i < n; ++i) CHECK(x[i] == before[static_cast<std::size_t>(i)] * T(-1.7));
    });
  });
}

TEST(subtract_product_subtracts_and_sums) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for_each_vector<T>(55, [&](T* y, index_t n) {
      const std::vector<T> before(y, y + n), a = random_numbers<T>(n + 1, 56);
      const std::vector<T> b = random_numbers<T>(n, 57);
      Sum sum;
      const double got = simd.subtract_product(y, T(0.7), a.data() + 1, b.data(), n);
      for (index_t i = 0; i < n; ++i) {
        const auto place = static_cast<std::size_t>(i);
        const T product = a[place + 1] * b[place];
        sum.add(product, T(1));
        Sum entry;
        entry.add(before[place], T(1));
        entry.add(T(-0.7), product);
        CHECK_NEAR(entry.error(static_cast<long double>(y[i])), 0.0, 2 * kEps<T>);
      }
      // Terms are added in T, lane by lane: at most 130 of them, and the lanes.
      if (n > 0) CHECK_NEAR(sum.error(static_cast<long double>(got)), 0.0, 70 * kEps<T>);
      if (n == 0) CHECK(got == 0);
    });
  });
}

TEST(copy_reversed_turns_every_length_around) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    for_each_vector<T>(50, [&](T* x, index_t n) {
      std::vector<T> y(static_cast<std::size_t>(n + 1), T(7)), want(y);
      std::reverse_copy(x, x + n, want.begin());
      simd.copy_reversed(x, y.data(), n);
      CHECK(y == want);
    });
  });
}

TEST(all_finite_sees_nan_and_infinity_in_every_lane) {
  for_each_build([]<class T>(const Kernels<T>& simd, T) {
    using Limits = std::numeric_limits<T>;
    for_each_vector<T>(60, [&](T* x, index_t n) {
      CHECK(simd.all_finite(x, n));
      for (index_t i = 0; i < n; ++i) {
        const T before = x[i];
        for (const T bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
          x[i] = bad;
          CHECK(!simd.all_finite(x, n));
        }
        for (const T good : {Limits::max(), Limits::lowest(), Limits::denorm_min(), -T(0)}) {
          x[i] = good;
          CHECK(simd.all_finite(x, n));
        }
        x[i] = before;
      }
      std::fill(x, x + n, Limits::max());  // large numbers do not add up to infinity
      CHECK(simd.all_finite(x, n));
    });
  });
}

namespace {

template <class T>
void check_band(const Kernels<T>& simd, index_t vectors, index_t window) {
  constexpr index_t kRows = 41, kColumns = 5, kGap = 2;
  const T factor = T(-0.3);
  const index_t channels = vectors * simd.lanes, stride = channels + 3;
  const std::vector<T> x = random_numbers<T>(kRows * stride + 1, 70),
                       y = random_numbers<T>(kColumns * channels, 71);
  const Rows<const T> left{x.data() + 1, stride}, right{y.data(), channels};
  std::vector<T> numbers(static_cast<std::size_t>(kColumns * (window + kGap)), T(7));
  const Rows<T> heads{numbers.data(), window + kGap};
  simd.band_dots(left, right, kColumns, window, channels, factor, heads);
  double worst = 0;
  for (index_t j = 0; j < kColumns; ++j) {
    for (index_t t = 0; t < window; ++t) {
      Sum dot;
      for (index_t c = 0; c < channels; ++c) dot.add(left.row(j + t)[c], right.row(j)[c]);
      const T got = heads.row(j)[t];
      worst = larger(worst, dot.error(static_cast<long double>(got) / factor));
      T alone = 0;
      simd.dots({left.row(j + t), stride}, 1, right.row(j), channels, factor, &alone);
      CHECK(alone == got);  // wherever the row lies
    }
    CHECK(heads.row(j)[window] == 7);
  }
  // One rounding for each vector, in the sum over lanes and in the factor.
  CHECK_NEAR(worst, 0.0, kEps<T> / 2 * static_cast<double>(vectors + simd.lanes));
}

/// Heads that are one further apart from zero in each column.
template <class T>
void check_first_apart(const Kernels<T>& simd, index_t columns, index_t window) {
  std::vector<T> heads(static_cast<std::size_t>(columns * window));
  const std::vector<T> head = random_numbers<T>(window, 72);
  for (index_t j = 0; j < columns; ++j)
    for (index_t t = 0; t < window; ++t)
      heads[static_cast<std::size_t>(j * window + t)] = head[static_cast<std::size_t>(t)];
  const auto first = [&](double threshold) {
    return simd.first_apart(heads.data(), columns, window, head.data(), threshold);
  };
  CHECK(first(1e-30) == columns && first(0) == 0);
  for (index_t j = columns; j-- > 0;) {
    T& entry = heads[static_cast<std::size_t>(j * window + j % window)];
    entry = entry > 0 ? T(-1) : T(1);
    CHECK(first(1) == j && first(1e30) == columns);
  }
}

/// One strip with columns [begin, end) in rows up to stop, or its transpose. What the products may
/// not read is NaN.
template <class T>
void check_direct(const Kernels<T>& simd, index_t vectors, index_t width, index_t below,
                  bool transpose) {
  const index_t begin = 2, end = begin + width, stop = end + below, rows = stop + 1;
  const index_t channels = vectors * simd.lanes, stride = channels + 1;
  std::vector<T> kernel = random_numbers<T>(stop - begin, 80),
                 x = random_numbers<T>(rows * stride + 1, 81),
                 y = random_numbers<T>(rows * stride + 1, 82);
  const std::vector<T> before = y;
  const auto at = [&](index_t row, index_t c) {
    return static_cast<std::size_t>(row * stride + c);
  };
  const index_t seen = transpose ? stop : end;
  for (index_t row = 0; row < rows; ++row)
    if (row < begin || row >= seen)
      for (index_t c = 0; c < stride; ++c) x[at(row, c + 1)] = std::numeric_limits<T>::quiet_NaN();
  (transpose ? simd.direct_transposed : simd.direct)(
      kernel.data(), begin, end, stop, {x.data() + 1, stride}, {y.data() + 1, stride}, channels);
  double worst = 0;
  for (index_t row = 0; row < rows; ++row) {
    for (index_t c = 0; c < stride; ++c) {
      Sum sum;
      sum.add(before[at(row, c)], T(1));
      const bool is_channel = c > 0;
      for (index_t j = begin; is_channel && j < end; ++j)
        for (index_t i = j; i < stop; ++i)
          if ((transpose ? j : i) == row)
            sum.add(kernel[static_cast<std::size_t>(i - j)], x[at(transpose ? i : j, c)]);
      worst = larger(worst, sum.error(static_cast<long double>(y[at(row, c)])));
    }
  }
  CHECK_NEAR(worst, 0.0, kEps<T> / 2 * static_cast<double>(stop - begin + 1));
}

}  // namespace

TEST(band_dots_match_plain_dot_products) {
  for_each_build([](const auto& simd, auto) {
    for (const index_t vectors : {1, 2, 5})
      for (const index_t window : {0, 1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 35})
        check_band(simd, vectors, window);
  });
}

TEST(first_apart_finds_the_first_head_of_that_distance) {
  for_each_build([](const auto& simd, auto) {
    for (const index_t columns : {1, 2, 15, 16, 17, 40})
      for (const index_t window : {1, 3, 8, 16, 17, 33}) check_first_apart(simd, columns, window);
  });
}

TEST(direct_products_match_plain_sums) {
  for_each_build([](const auto& simd, auto) {
    for (const index_t vectors : {1, 2, 5})
      for (const index_t width : {0, 1, 2, 5, 6, 7, 13, 66, 73})
        for (const index_t below : {0, 1, 2, 6, 11, 70})
          for (const bool transpose : {false, true})
            if (vectors == 1 || width + below < 30)
              check_direct(simd, vectors, width, below, transpose);
  });
}
