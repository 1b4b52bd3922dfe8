#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/cost_model.h"
#include "convbasis/error.h"
#include "convbasis/recover.h"

using namespace convbasis;

namespace {

constexpr index_t kPeriod = 24;

/// Queries and keys whose causal logits are exactly strips: q_i is one-hot at i mod kPeriod and key
/// j of strip r holds f_r shifted by j, so q_i . k_j = f_r[(i - j) mod kPeriod] in every precision.
template <class T>
struct Strips {
  Strips(index_t rows, index_t columns, std::vector<index_t> first_columns, unsigned seed = 1)
      : n(rows),
        m(columns),
        starts(std::move(first_columns)),
        query(static_cast<std::size_t>(n * kPeriod)),
        key(static_cast<std::size_t>(m * kPeriod)) {
    std::mt19937_64 random(seed);
    std::uniform_int_distribution<int> sixteenths(-32, 32);
    for (index_t i = 0; i < n; ++i) at(query, i, i) = 1;
    std::vector<T> f(kPeriod);
    for (index_t j = 0; j < m; ++j) {
      if (std::find(starts.begin(), starts.end(), j) != starts.end())
        for (T& logit : f) logit = static_cast<T>(sixteenths(random)) / 16;
      for (index_t t = 0; t < kPeriod; ++t) at(key, j, j + t) = f[static_cast<std::size_t>(t)];
    }
  }
  static T& at(std::vector<T>& matrix, index_t row, index_t place) {
    return matrix[static_cast<std::size_t>(row * kPeriod + place % kPeriod)];
  }
  [[nodiscard]] View<const T, 4> queries() const {
    return contiguous_view<const T, 4>(query.data(), {1, 1, n, kPeriod});
  }
  [[nodiscard]] View<const T, 4> keys() const {
    return contiguous_view<const T, 4>(key.data(), {1, 1, m, kPeriod});
  }
  [[nodiscard]] T logit(index_t i, index_t j) const {
    T dot = 0;
    for (index_t c = 0; c < kPeriod; ++c)
      dot += query[static_cast<std::size_t>(i * kPeriod + c)] *
             key[static_cast<std::size_t>(j * kPeriod + c)];
    return dot;
  }
  [[nodiscard]] ConvBasis<T> recover(const RecoverOptions& options, double scale = 1,
                                     int threads = 2) const {
    return recover_basis<T>(queries(), keys(), scale, options, {threads});
  }
  index_t n, m;
  std::vector<index_t> starts;
  std::vector<T> query, key;
};

using Search = RecoverOptions::Search;

RecoverOptions options_for(index_t window, Search search) {
  RecoverOptions options;
  options.window = window;
  options.search = search;
  return options;
}

}  // namespace

TEST(exact_strips_are_found_by_both_searches) {
  const auto check = []<class T>(T) {
    for (const Search search : {Search::scan, Search::bisect}) {
      for (const index_t n : {17, 31, 33, 64, 97, 130, 300}) {
        for (const std::vector<index_t>& starts : std::vector<std::vector<index_t>>{
                 {0}, {3}, {0, 1}, {0, 1, 2, 9}, {0, n / 2}, {5, n / 2, n - 8}}) {
          const Strips<T> strips(n, n, starts, static_cast<unsigned>(n));
          const ConvBasis<T> basis = strips.recover(options_for(8, search), 0.5);
          CHECK(basis.starts == starts);
          CHECK(basis.num_bases == std::vector<index_t>{static_cast<index_t>(starts.size())});
          CHECK(basis.complete == std::vector<char>{1});
          CHECK(basis.rows == n && basis.num_columns == n && basis.max_bases == basis.num_bases[0]);
          bool is_zero = true;
          for (index_t r = 0; r < basis.max_bases; ++r) {
            const index_t start = starts[static_cast<std::size_t>(r)];
            for (index_t t = 0; t < n; ++t) {  // zero past the last row
              const T want = start + t < n ? strips.logit(start + t, start) / 2 : T(0);
              CHECK(basis.view().kernels(0, 0, r, t) == want);
              is_zero = is_zero && want == 0;
            }
          }
          CHECK(!is_zero);
        }
      }
    }
  };
  check(float());
  check(double());
}

TEST(no_difference_from_zero_means_no_strip) {
  const Strips<float> strips(40, 40, {});
  for (const Search search : {Search::scan, Search::bisect}) {
    const ConvBasis<float> basis = strips.recover(options_for(8, search));
    CHECK(basis.num_bases == std::vector<index_t>{0} && basis.max_bases == 0);
    CHECK(basis.complete == std::vector<char>{1} && basis.kernels.empty());
  }
}

TEST(a_cap_keeps_the_first_strips_and_says_so) {
  const Strips<double> strips(100, 100, {0, 10, 20, 30});
  for (const Search search : {Search::scan, Search::bisect}) {
    for (const index_t cap : {1, 2, 3, 4, 5}) {
      RecoverOptions options = options_for(8, search);
      options.num_bases = cap;
      const ConvBasis<double> basis = strips.recover(options);
      const auto found = static_cast<std::size_t>(std::min<index_t>(cap, 4));
      CHECK(basis.starts ==
            std::vector<index_t>(strips.starts.begin(), strips.starts.begin() + cap - (cap > 4)));
      CHECK(basis.starts.size() == found);
      CHECK((basis.complete[0] != 0) == (cap >= 4));
    }
  }
}

TEST(without_a_cap_break_even_ends_the_search) {
  // Every column differs from the one before.
  const index_t n = 300;
  Strips<float> strips(n, n, {});
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  for (float& entry : strips.key) entry = normal(random);
  const ConvBasis<float> basis = strips.recover(options_for(8, Search::scan));
  CHECK(basis.num_bases[0] == break_even<float>(n, kPeriod, kPeriod));
  CHECK(basis.complete[0] == 0);
}

TEST(as_many_bases_as_columns_makes_every_column_a_strip) {
  for (const Search search : {Search::scan, Search::bisect}) {
    for (const index_t window : {1, 4, 16}) {
      for (const index_t extra : {0, 1, 100}) {
        const Strips<float> strips(40, 40, {0, 20});
        RecoverOptions options = options_for(window, search);
        options.num_bases = 40 - window + 1 + extra;  // candidate columns
        const ConvBasis<float> basis = strips.recover(options);
        CHECK(basis.num_bases[0] == 40 - window + 1);
        for (index_t j = 0; j < basis.num_bases[0]; ++j)
          CHECK(basis.starts[static_cast<std::size_t>(j)] == j);
        CHECK(basis.complete[0] == 1);
      }
    }
  }
}

TEST(columns_too_short_for_the_window_only_decide_completeness) {
  constexpr index_t kRows = 64, kWindow = 8;
  for (const Search search : {Search::scan, Search::bisect}) {
    for (const index_t start : {kRows - kWindow, kRows - kWindow + 1, kRows - 2, kRows - 1}) {
      const Strips<double> strips(kRows, kRows, {0, start});
      const ConvBasis<double> basis = strips.recover(options_for(kWindow, search));
      const bool is_candidate = start + kWindow <= kRows;
      CHECK(basis.starts ==
            (is_candidate ? std::vector<index_t>{0, start} : std::vector<index_t>{0}));
      CHECK((basis.complete[0] != 0) == is_candidate);
    }
    // Without any strip the last columns are compared with zero.
    const Strips<double> strips(kRows, kRows, {kRows - 3});
    const ConvBasis<double> basis = strips.recover(options_for(kWindow, search));
    CHECK(basis.num_bases[0] == 0 && basis.complete[0] == 0);
  }
}

TEST(a_window_longer_than_the_sequence_is_cut) {
  for (const index_t n : {1, 2, 3, 5}) {
    const Strips<float> strips(n, n, {0});
    const ConvBasis<float> basis = strips.recover(options_for(16, Search::scan));
    CHECK(basis.starts == std::vector<index_t>{0} && basis.complete[0] == 1);
  }
  const ConvBasis<float> basis = Strips<float>(0, 0, {}).recover({});
  CHECK(basis.num_bases == std::vector<index_t>{0} && basis.rows == 0);
}

TEST(other_numbers_of_keys_than_queries) {
  for (const Search search : {Search::scan, Search::bisect}) {
    for (const index_t keys : {0, 1, 5, 60, 100, 101, 150}) {
      const Strips<float> strips(100, keys, {0, 4, 50});
      const ConvBasis<float> basis = strips.recover(options_for(8, search));
      std::vector<index_t> want;
      for (const index_t start : strips.starts)
        if (start < keys) want.push_back(start);
      CHECK(basis.starts == want && basis.complete[0] == 1);
      CHECK(basis.num_columns == std::min<index_t>(100, keys));
    }
  }
}

TEST(the_threshold_is_delta_less_two_windows_of_epsilon) {
  // One entry of the window of column 20 differs from strip 0 by 1 / 2.
  Strips<double> strips(64, 64, {0});
  for (index_t j = 20; j < 64; ++j) Strips<double>::at(strips.key, j, j + 3) += 0.5;
  const auto finds_it = [&](double delta, double epsilon) {
    RecoverOptions options = options_for(8, Search::scan);
    options.delta = delta;
    options.epsilon = epsilon;
    return strips.recover(options).starts == std::vector<index_t>{0, 20};
  };
  CHECK(finds_it(0.5, 0) && !finds_it(0.5 + 1e-9, 0));
  const double epsilon = 0.01, below = 2 * 8 * epsilon;
  CHECK(finds_it(0.5 + below - 1e-9, epsilon) && !finds_it(0.5 + below + 1e-9, epsilon));
}

TEST(heads_are_padded_to_the_longest_and_share_keys) {
  // Two batches of two query heads and one key head; the second batch has other strips.
  const Strips<float> first(50, 50, {0, 10, 20}, 1), second(50, 50, {7}, 2);
  std::vector<float> query, key;
  for (const Strips<float>* batch : {&first, &second}) {
    for (int head = 0; head < 2; ++head)
      query.insert(query.end(), batch->query.begin(), batch->query.end());
    key.insert(key.end(), batch->key.begin(), batch->key.end());
  }
  const auto q = contiguous_view<const float, 4>(query.data(), {2, 2, 50, kPeriod});
  const auto k = contiguous_view<const float, 4>(key.data(), {2, 1, 50, kPeriod});
  for (const int threads : {1, 2, 5}) {
    const ConvBasis<float> basis =
        recover_basis<float>(q, k, 1, options_for(8, Search::scan), {threads});
    CHECK(basis.max_bases == 3 && (basis.num_bases == std::vector<index_t>{3, 3, 1, 1}));
    CHECK((basis.starts == std::vector<index_t>{0, 10, 20, 0, 10, 20, 7, 50, 50, 7, 50, 50}));
    for (index_t b = 0; b < 2; ++b) {
      const ConvBasis<float> alone =
          (b == 0 ? first : second).recover(options_for(8, Search::scan));
      for (index_t h = 0; h < 2; ++h)
        for (index_t r = 0; r < alone.max_bases; ++r)
          for (index_t t = 0; t < 50; ++t)
            CHECK(basis.view().kernels(b, h, r, t) == alone.view().kernels(0, 0, r, t));
    }
  }
}

TEST(windows_longer_than_a_tile_are_compared_whole) {
  // Column j >= 100 differs from column 0 from row 700 on.
  constexpr index_t kRows = 1000;
  std::vector<double> query(kRows * 2, 0.0), key(kRows * 2, 0.0);
  for (index_t i = 0; i < kRows; ++i) query[static_cast<std::size_t>(2 * i)] = 1;
  for (index_t i = 0; i < kRows; ++i) key[static_cast<std::size_t>(2 * i)] = 1;
  for (index_t i = 700; i < kRows; ++i) query[static_cast<std::size_t>(2 * i + 1)] = 1;
  for (index_t j = 100; j < kRows; ++j) key[static_cast<std::size_t>(2 * j + 1)] = 1;
  const auto q = contiguous_view<const double, 4>(query.data(), {1, 1, kRows, 2});
  const auto k = contiguous_view<const double, 4>(key.data(), {1, 1, kRows, 2});
  RecoverOptions options = options_for(600, Search::scan);
  options.delta = 0.5;
  options.num_bases = 2;
  for (const auto& [window, start] :
       std::vector<std::pair<index_t, index_t>>{{300, 401}, {512, 189}, {600, 101}, {601, 100}}) {
    options.window = window;  // its last entry is the first that differs
    CHECK((recover_starts<double>(q, k, 1, options).starts == std::vector<index_t>{0, start}));
  }
}

TEST(kernels_past_the_last_row_or_strip_are_zero) {
  const Strips<float> strips(200, 200, {0, 70, 130});
  const std::vector<index_t> starts{0, 70, 200}, count{2};
  std::vector<float> kernels(600, 7.0F);
  recover_kernels<float>(strips.queries(), strips.keys(),
                         contiguous_view<const index_t, 3>(starts.data(), {1, 1, 3}),
                         contiguous_view<const index_t, 2>(count.data(), {1, 1}), 1,
                         contiguous_view<float, 4>(kernels.data(), {1, 1, 3, 200}), {2});
  for (index_t r = 0; r < 3; ++r) {
    const index_t start = starts[static_cast<std::size_t>(r)];
    for (index_t t = 0; t < 200; ++t)
      CHECK(kernels[static_cast<std::size_t>(r * 200 + t)] ==
            (start + t < 200 ? strips.logit(start + t, start) : 0.0F));
  }
}

TEST(recovery_does_not_depend_on_threads_or_on_what_precedes) {
  // Random logits at a threshold that is met now and then.
  constexpr index_t kRows = 400, kDim = 20, kCut = 37;
  std::mt19937_64 random(9);
  std::normal_distribution<float> normal;
  std::vector<float> query(kRows * kDim), key(kRows * kDim);
  for (float& entry : query) entry = normal(random);
  for (float& entry : key) entry = normal(random);
  RecoverOptions options = options_for(8, Search::scan);
  options.delta = 45;
  options.num_bases = 300;
  const auto recover = [&](index_t from, int threads) {
    const index_t n = kRows - from;
    return recover_basis<float>(
        contiguous_view<const float, 4>(query.data() + from * kDim, {1, 1, n, kDim}),
        contiguous_view<const float, 4>(key.data() + from * kDim, {1, 1, n, kDim}), 1, options,
        {threads});
  };
  const ConvBasis<float> whole = recover(0, 1), threaded = recover(0, 5), later = recover(kCut, 2);
  CHECK(whole.num_bases[0] > 5 && whole.num_bases[0] < 300);
  CHECK(whole.starts == threaded.starts && whole.kernels == threaded.kernels);
  const auto start =
      std::find_if(whole.starts.begin(), whole.starts.end(), [&](index_t s) { return s >= kCut; });
  for (index_t r = 0; r < later.num_bases[0]; ++r)
    for (auto other = start; other != whole.starts.end(); ++other)
      if (*other == later.starts[static_cast<std::size_t>(r)] + kCut)
        for (index_t t = 0; t < kRows - *other; ++t)
          CHECK(whole.view().kernels(0, 0, other - whole.starts.begin(), t) ==
                later.view().kernels(0, 0, r, t));
}

TEST(strided_queries_and_keys_give_the_same) {
  const Strips<double> strips(70, 70, {0, 10, 33});
  std::vector<double> query(strips.query.size()), key(strips.key.size());  // (dim, n), backwards
  for (index_t i = 0; i < 70; ++i)
    for (index_t c = 0; c < kPeriod; ++c) {
      query[static_cast<std::size_t>(c * 70 + i)] =
          strips.query[static_cast<std::size_t>(i * kPeriod + c)];
      key[static_cast<std::size_t>((70 - i) * kPeriod - 1 - c)] =
          strips.key[static_cast<std::size_t>(i * kPeriod + c)];
    }
  const ConvBasis<double> basis = recover_basis<double>(
      {query.data(), {1, 1, 70, kPeriod}, {0, 0, 1, 70}},
      {&key.back(), {1, 1, 70, kPeriod}, {0, 0, -kPeriod, -1}}, 1, options_for(8, Search::scan));
  const ConvBasis<double> packed = strips.recover(options_for(8, Search::scan));
  CHECK(basis.starts == packed.starts && basis.kernels == packed.kernels);
}

TEST(wrong_recover_options_are_named) {
  const Strips<float> strips(20, 20, {0});
  const auto with = [&](auto change) {
    RecoverOptions options;
    change(options);
    return recover_starts<float>(strips.queries(), strips.keys(), 1, options);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS(with([](auto& o) { o.num_bases = 0; }), InvalidArgument,
               "[recover_basis] num_bases is 0; expected at least 1");
  CHECK_THROWS(with([](auto& o) { o.num_bases = -3; }), InvalidArgument, "num_bases is -3");
  CHECK_THROWS(with([](auto& o) { o.window = 0; }), InvalidArgument,
               "[recover_basis] window is 0; expected at least 1");
  CHECK_THROWS(with([](auto& o) { o.delta = -1; }), InvalidArgument, "[recover_basis] delta is -1");
  for (const double bad : {nan, infinity})
    CHECK_THROWS(with([&](auto& o) { o.delta = bad; }), InvalidArgument,
                 "expected a finite number");
  for (const double bad : {nan, infinity, -1e-9, 0.2 * 1e-2 / 16 * 1.001})
    CHECK_THROWS(with([&](auto& o) { o.epsilon = bad; }), InvalidArgument,
                 "expected 0 to delta / (5 * window)");
  CHECK(with([](auto& o) { o.epsilon = 0.2 * 1e-2 / 16 * 0.999; }).num_bases[0] == 1);
}
