#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "convbasis/error.h"
#include "convbasis/sparsify.h"
#include "wide.h"

using namespace convbasis;

namespace {

using Method = SparsifyOptions::Method;
using Scores = SparsifyOptions::Scores;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

SparsifyOptions asked(Method method, index_t num_columns, std::uint64_t seed = 0,
                      Scores scores = Scores::automatic) {
  SparsifyOptions options;
  options.method = method;
  options.num_columns = num_columns;
  options.seed = seed;
  options.scores = scores;
  return options;
}

/// Every way to choose columns.
std::vector<SparsifyOptions> ways(index_t num_columns, std::uint64_t seed = 0) {
  return {asked(Method::bss, num_columns, seed),
          asked(Method::leverage, num_columns, seed, Scores::exact),
          asked(Method::leverage, num_columns, seed, Scores::sketched)};
}

bool same(const Sparsified& a, const Sparsified& b) {
  return a.indices == b.indices && a.weights == b.weights && a.epsilon == b.epsilon &&
         a.error == b.error && a.trivial_error == b.trivial_error &&
         a.logit_deviation == b.logit_deviation && a.condition_number == b.condition_number;
}

bool has(const Sparsified& found, index_t column) {
  return std::binary_search(found.indices.begin(), found.indices.end(), column);
}

}  // namespace

TEST(sparsify_measures_what_it_did) {
  Wide p(12, 900, 1.0);
  for (double& value : p.x) value *= 0.02;
  for (const SparsifyOptions& options : ways(150)) {
    const Sparsified found = sparsify_features(p.dense(), options);
    CHECK(found.rank == 12 && found.num_columns == 150);
    CHECK(found.indices.size() <= 150 && found.indices.size() == found.weights.size());
    CHECK(std::is_sorted(found.indices.begin(), found.indices.end()));
    const auto m = static_cast<index_t>(found.indices.size());
    std::vector<double> y(at(12 * m));
    const auto features = contiguous_view<double, 2>(y.data(), {12, m});
    reweighted_columns(p.dense(), found.indices, found.weights, features);
    double radius = 0, deviation = 0;
    for (index_t i = 0; i < 12; ++i)
      for (index_t j = 0; j < 12; ++j) {
        double old = 0, now = 0;
        for (index_t c = 0; c < p.d; ++c) old += p(i, c) * p(j, c);
        for (index_t c = 0; c < m; ++c) now += features(i, c) * features(j, c);
        radius = std::max(radius, std::abs(old));
        deviation = std::max(deviation, std::abs(now - old));
      }
    CHECK_NEAR(found.radius, radius, 1e-12);
    CHECK_NEAR(found.logit_deviation, deviation, 1e-12);
    CHECK(0 < deviation && deviation <= found.epsilon * radius);
    CHECK(0 < found.error && found.error <= found.error_bound);
    CHECK_NEAR(found.error_bound, std::expm1(2 * found.epsilon * radius), 1e-12);
    CHECK(found.condition_number >= (1 + found.epsilon) / (1 + 1e-9));
    CHECK(found.is_sketched == (options.scores == Scores::sketched));
  }
}

TEST(sparsify_barriers_always_keep_their_promise) {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    const auto n = static_cast<index_t>(1 + seed % 8), d = static_cast<index_t>(20 + seed % 60);
    const Wide p(n, d, seed % 3 == 0 ? 0.3 : 1.0, seed);
    const index_t m = n + 1 + static_cast<index_t>(seed % 11);
    const Sparsified found = sparsify_features(p.dense(), asked(Method::bss, m));
    CHECK(found.epsilon <= found.epsilon_promised * (1 + 1e-9));
    CHECK(found.error <= found.error_bound * (1 + 1e-9));
  }
}

TEST(sparsify_draws_break_their_promise_as_seldom_as_they_say) {
  constexpr int kProblems = 1500;
  for (const Scores scores : {Scores::exact, Scores::sketched}) {
    int broken = 0;
    for (std::uint64_t seed = 0; seed < kProblems; ++seed) {
      const auto n = static_cast<index_t>(1 + seed % 8);
      const Wide p(n, 150, seed % 3 == 0 ? 0.3 : 1.0, seed);
      SparsifyOptions options = asked(Method::leverage, 12 * n, seed, scores);
      options.delta = 0.2;
      const Sparsified found = sparsify_features(p.sparse(), options);
      broken += found.epsilon > found.epsilon_promised;
    }
    CHECK(broken <= kProblems / 5);
  }
}

TEST(sparsify_does_not_depend_on_threads) {
  const Wide p(20, 3000, 0.3);
  for (const Columns& x : {Columns(p.dense()), Columns(p.sparse())})
    for (const SparsifyOptions& options : ways(100)) {
      const Sparsified one = sparsify_features(x, options, {1});
      CHECK(same(one, sparsify_features(x, options, {2})));
      CHECK(same(one, sparsify_features(x, options, {5})));
    }
}

TEST(sparsify_sparse_is_as_dense) {
  const Wide p(20, 800, 0.2);
  for (const SparsifyOptions& options : ways(80)) {
    const Sparsified dense = sparsify_features(p.dense(), options),
                     sparse = sparsify_features(p.sparse(), options);
    CHECK(dense.indices == sparse.indices);
    CHECK_NEAR(dense.epsilon, sparse.epsilon, 1e-9);
  }
}

TEST(sparsify_a_seed_decides) {
  const Wide p(6, 400, 1.0);
  for (const Scores scores : {Scores::exact, Scores::sketched}) {
    const auto of = [&](std::uint64_t seed) {
      return sparsify_features(p.dense(), asked(Method::leverage, 60, seed, scores));
    };
    CHECK(same(of(1), of(1)));
    CHECK(of(1).indices != of(2).indices);
  }
}

TEST(sparsify_numbers_can_be_given) {
  const Wide p(6, 400, 1.0);
  SparsifyOptions options = asked(Method::leverage, 60, 0, Scores::exact);
  std::size_t taken = 0;
  options.uniforms = [&](std::span<double> numbers) {
    taken += numbers.size();
    std::fill(numbers.begin(), numbers.end(), 0.999999999);
  };
  const Sparsified found = sparsify_features(p.dense(), options);
  CHECK(taken == 60 && found.indices == std::vector<index_t>{399});
}

TEST(sparsify_adversarial_columns) {
  Wide p(8, 300, 1.0);
  for (index_t j = 0; j < p.d; ++j) {
    p(6, j) = p(7, j) = 0;  // row 7 says nothing
    for (index_t i = 0; i < 6; ++i) {
      if (j % 2 == 0) p(i, j) = 0;        // columns that say nothing
      if (j % 3 == 0) p(i, j) = p(i, 1);  // and copies
    }
  }
  p(6, 122) = 1e-3;  // alone in its direction
  p.compress();
  for (std::uint64_t seed = 0; seed < 30; ++seed)
    for (const Columns& x : {Columns(p.dense()), Columns(p.sparse())})
      for (const SparsifyOptions& options : ways(28, seed)) {
        const Sparsified found = sparsify_features(x, options);
        CHECK(found.rank == 7);
        CHECK(has(found, 122));
        for (const index_t index : found.indices)
          CHECK(index % 2 == 1 || index == 122 || index % 3 == 0);
      }
}

TEST(sparsify_all_and_none) {
  Wide p(4, 9, 1.0);
  for (index_t i = 0; i < 4; ++i) p(i, 2) = 0;
  p.compress();
  for (const SparsifyOptions& options : ways(9))
    for (const Columns& x : {Columns(p.dense()), Columns(p.sparse())}) {
      const Sparsified all = sparsify_features(x, options);
      CHECK(all.indices == (std::vector<index_t>{0, 1, 3, 4, 5, 6, 7, 8}));
      CHECK(all.epsilon < 1e-12 && all.epsilon_promised == 0 && all.error < 1e-12);
    }
  const Wide zero(3, 5, 0.0);
  for (const SparsifyOptions& options : ways(3)) {
    const Sparsified none = sparsify_features(zero.sparse(), options);
    CHECK(none.rank == 0 && none.indices.size() == 1 && none.epsilon == 0 && none.error == 0);
  }
}

TEST(sparsify_progress_is_told) {
  const Wide p(3, 50, 1.0);
  for (SparsifyOptions options : ways(8)) {
    index_t calls = 0, last = 0;
    options.progress = [&](index_t chosen, index_t total) {
      ++calls;
      last = chosen;
      CHECK(total == 8);
    };
    (void)sparsify_features(p.dense(), options);
    CHECK(last == 8 && calls == (options.method == Method::bss ? 8 : 1));
  }
}

TEST(sparsify_can_be_interrupted) {
  struct Always final : Interrupt {
    bool requested() override { return true; }
  } always;
  const Wide p(64, 4000, 1.0);
  CHECK_THROWS(sparsify_features(p.dense(), asked(Method::bss, 1000), {2, &always}), Interrupted,
               "interrupted");
}

TEST(sparsify_arguments_are_checked) {
  Wide p(3, 5, 1.0);
  const SparsifyOptions usual = asked(Method::leverage, 4);
  const auto call = [&](const Columns& x) { return sparsify_features(x, usual); };
  CHECK_THROWS(call(Wide(5, 3, 1.0).dense()), InvalidArgument,
               "x has fewer columns than rows, and nothing to leave out; expected shape (n, d) "
               "with d >= n = 5; got shape (5, 3)");
  CHECK_THROWS(call(Wide(0, 3, 1.0).dense()), InvalidArgument, "x is no matrix");
  CHECK_THROWS(sparsify_features(p.dense(), asked(Method::leverage, 2)), InvalidArgument,
               "num_columns is too small for x of rank 3; expected at least 3; got 2");
  CHECK_THROWS(sparsify_features(p.dense(), asked(Method::bss, 3)), InvalidArgument,
               "expected at least 4; got 3");
  SparsifyOptions bad;
  bad.epsilon = 1.0;
  CHECK_THROWS(sparsify_features(p.dense(), bad), InvalidArgument, "epsilon is out of range");
  bad = {};
  bad.delta = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS(sparsify_features(p.dense(), bad), InvalidArgument, "delta is out of range");
  const View<const double, 2> gaps{p.x.data(), {2, 3}, {6, 2}};
  CHECK_THROWS(call(gaps), InvalidArgument, "expected contiguous rows");
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
    Wide spoiled = p;
    spoiled(1, 2) = value;
    spoiled.compress();
    CHECK_THROWS(call(spoiled.dense()), InvalidArgument, "x has NaN or infinite entries");
    CHECK_THROWS(call(spoiled.sparse()), InvalidArgument, "x has NaN or infinite entries");
  }
  p.entry_rows[1] = 3;
  CHECK_THROWS(call(p.sparse()), InvalidArgument, "rows has entries outside of the matrix");
  p.entry_rows.pop_back();
  CHECK_THROWS(call(p.sparse()), InvalidArgument, "rows has another length");
  p.starts[1] = 99;
  CHECK_THROWS(call(p.sparse()), InvalidArgument, "starts does not divide the entries");
}
